"""One HTML page of a results folder that needs no network."""

"""Records to paper: tables, figures and the HTML page."""

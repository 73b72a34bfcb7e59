"""What is kept of a cell: the record's schema, the results folder, environment and protocol."""

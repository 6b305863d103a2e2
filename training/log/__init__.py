"""From outcome logs to a table with one row for each prompt and one column for each tier."""

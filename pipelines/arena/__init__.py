"""The arena's numbers in a table, in charts and in words."""

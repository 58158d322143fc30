"""The tables, a module each, from the results."""

"""Rows with their optimizer state: id map, tables, admission sketch, dense parameters."""

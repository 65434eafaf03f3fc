"""Comparisons of the system with others, log by log."""

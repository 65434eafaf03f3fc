"""Candidates of a registry as lists and differences: ``recsys models``."""

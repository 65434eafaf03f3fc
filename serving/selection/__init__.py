"""Selectors: from scored candidates to a drawn list."""

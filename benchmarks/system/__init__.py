"""Whole systems under load and faults."""

"""Filters: what closes items to a list, a file each."""

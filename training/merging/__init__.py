"""Merges two lines of models by interpolation of their weights."""

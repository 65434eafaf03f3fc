"""Drift detection on the live line."""

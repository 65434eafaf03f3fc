"""Drift detection on the live line, and the reactions to its alarms."""

"""Data sets as events in time order."""

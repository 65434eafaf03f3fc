"""Studies of experiment statistics."""

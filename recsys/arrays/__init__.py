"""Compiled array containers: bitmaps, hash indexes and growable columns. Knows nothing of recommenders."""

"""Scorers: what sets and changes the scores of candidates, a file each."""

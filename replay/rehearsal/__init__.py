"""Plays the rows of a log to a running system, as its viewers would make them."""

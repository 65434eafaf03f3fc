"""Followers of the log: each keeps one part of a replica's state up to date."""

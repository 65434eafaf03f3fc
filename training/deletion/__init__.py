"""Deletes users who asked to be forgotten, from the log, the archive and what was learned."""

"""Deletes users on request, from the log, the archive and the model."""

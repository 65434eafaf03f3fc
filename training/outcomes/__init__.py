"""Folds outcomes of experiments from the log, and decides their next revision."""

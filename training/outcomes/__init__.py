"""Outcomes of experiments, folded from the log, and the director's handling of running experiments."""

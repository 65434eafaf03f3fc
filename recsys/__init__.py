"""Shared kernel: events, log, features, model, configuration, observability.

Imports none of the other packages.
"""

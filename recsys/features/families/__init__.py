"""Families of features, each with its keys in ``app.yaml``, its columns and their numbers."""

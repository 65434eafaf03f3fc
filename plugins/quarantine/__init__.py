"""Plug-in that names accounts which push or sink items together: ``recsys quarantine``, the part sentinel."""

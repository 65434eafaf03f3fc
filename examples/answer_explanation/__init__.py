"""A past answer, recomputed from log and snapshots: ``recsys explain``."""

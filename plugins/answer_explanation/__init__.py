"""Past answers computed again from the log and snapshots, bit for bit: ``recsys explain``."""

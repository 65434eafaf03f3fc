"""A whole system in one process: the parts of ``recsys up`` as threads, or in turns of a call."""

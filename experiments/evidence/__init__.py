"""Evidence on lines beside live, the sanity gates on it, and verdicts. Pure."""

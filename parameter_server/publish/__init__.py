"""Published deltas of a shard: assembly, rounding, and rows withheld by the byte budget."""

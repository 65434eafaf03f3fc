"""What a shard publishes after a step: deltas, rounding, and rows withheld by the byte budget."""

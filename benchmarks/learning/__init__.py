"""Speed of joining, tables, training, deltas and drift monitors."""

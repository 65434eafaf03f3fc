"""Two lines made one: catch-up, interpolation, averages and their distillation."""

"""Studies of promotion, guard and distillation."""

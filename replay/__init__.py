"""Event-clock replay: the loop in one process. Below runtime, above serving and training."""

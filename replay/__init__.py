"""Event-clock replay: the loop in one process, and the real parts in lockstep. Below runtime, above serving
and training."""

"""The loop in one process, and through the real parts in lockstep. Below runtime, above serving and training."""

"""Attacks on the learning loop: their effect, the cost of the defences, and who is named."""

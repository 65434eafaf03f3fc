"""Turns events into better models: joiner, sequencer, continual trainer, director. Never imports serving."""

"""From events to a better model: joiner, sequencer, continual trainer, director. Never imports serving."""

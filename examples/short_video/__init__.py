"""The short-video app of the demo: its definition, a simulated world and its viewers."""

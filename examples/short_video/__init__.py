"""The short-video app of the demo: its definition, the feed page, a simulated world and its viewers."""

"""What `recsys study` measures: what a part of the design is worth, in worlds whose truth is known."""

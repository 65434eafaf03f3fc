"""Studies of quality: what parts of the design are worth, where the truth is known."""

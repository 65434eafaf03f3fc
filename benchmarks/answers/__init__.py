"""Speed and exactness of answers."""

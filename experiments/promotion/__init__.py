"""Lines beside live: their lifecycle, and the rules by which each kind of line is judged. Pure."""

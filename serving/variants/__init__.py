"""Model variants beside the live one: canaries and experiment arms with a line of their own."""

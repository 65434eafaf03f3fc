"""The state that one replica answers from, and the log readers that keep it current."""

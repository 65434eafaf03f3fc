"""The state that one replica answers from, its parts, and its snapshots."""

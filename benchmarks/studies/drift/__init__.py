"""Studies of merging and forgetting where the world changes."""

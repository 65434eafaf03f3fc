"""Studies of ranking quality, freshness and cold start."""

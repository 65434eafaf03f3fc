"""Speed and recall of vector indexes and retrieval shards."""

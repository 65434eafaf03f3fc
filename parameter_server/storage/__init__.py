"""Durability of a shard: write-ahead log, snapshots, increments, and changing the number of shards."""

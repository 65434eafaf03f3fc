"""Rows with their optimizer state: tables, shards, deltas and snapshots. Imported by serving and training."""

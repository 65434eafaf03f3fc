"""Joins impressions with later engagements into labelled examples, with snapshots and spilling to disk."""

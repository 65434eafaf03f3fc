"""Candidate sources and filters, in the replica or in retrieval shards of their own."""

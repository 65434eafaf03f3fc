"""Metrics, spans and freshness of a replica."""

"""Candidates for the live line: registry, shadow scoring, retrieval comparison, and promotion."""

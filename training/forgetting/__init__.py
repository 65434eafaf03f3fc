"""Measures and limits forgetting: panels of old examples, scored again after later learning."""

"""Measures the AUC cost of serving embedding rows in a smaller format: ``recsys accept int8``."""

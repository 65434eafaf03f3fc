"""Features of archived impressions, recomputed from the events of the time: ``recsys audit features``."""

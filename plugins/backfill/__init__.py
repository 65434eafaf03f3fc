"""The plug-in command ``recsys backfill``: adds features to archived examples that lack them."""

"""Commands that learn from an app's data: its files, a log of the past, or the archive."""

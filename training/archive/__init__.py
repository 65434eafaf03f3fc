"""Archives the log as Parquet, reads it back, and names unreadable records."""

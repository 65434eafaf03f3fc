"""Archives the log as Parquet, reads it back, audits its features and recomputes them."""

"""The log's cold half as Parquet: written, read, audited, and computed again from."""

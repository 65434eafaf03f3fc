"""MovieLens-100K as somebody's own tables: from a CSV file to personal lists."""

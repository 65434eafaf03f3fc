"""What training parts know about lines: configuration, lineage, and which epoch is live."""

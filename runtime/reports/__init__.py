"""Reports for terminals and JSON output."""

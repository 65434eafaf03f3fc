"""Reports for terminals, JSON output and HTML pages."""

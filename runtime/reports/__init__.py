"""Terminal tables and pages that commands print."""

"""The control room's part: gathers the status of a running system for the page."""

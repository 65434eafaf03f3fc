"""The control-room part: gathers the status of a running system for the page."""

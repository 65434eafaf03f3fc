"""The part table, the supervisor and its state file, and the status of a running system."""

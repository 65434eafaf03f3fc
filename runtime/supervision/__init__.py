"""Process supervision: the part table, the supervisor and its state file, and the system status."""

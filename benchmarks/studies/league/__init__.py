"""How the system compares with others, log by log."""

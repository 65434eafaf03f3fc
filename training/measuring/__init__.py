"""What experiments give: outcomes folded from the log, and the director's care of what runs."""

"""Write path: validates events and changes, appends them to the log, spools them to disk while it is away."""

"""Cuts examples into numbered steps, as records on the log, and reads them back."""

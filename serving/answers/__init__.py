"""The answer to a request: its items with reasons, and the impression that records how it was made."""

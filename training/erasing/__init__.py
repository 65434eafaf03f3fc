"""Users who asked to be forgotten: taken from log and archive, and from what was learned."""

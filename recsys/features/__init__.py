"""Feature sets, sessions, counters and the catalogue, and how ranker inputs are built from them."""

"""`recsys demo`: data, warm-up, simulated viewers and the check that measures a fresh system."""

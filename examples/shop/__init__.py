"""A shop that logs clicks and purchases only, no lists. ``make_log`` simulates its event log."""

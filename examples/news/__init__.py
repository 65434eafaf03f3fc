"""A news page: slates of twelve articles that live for hours. ``make_log`` simulates its event log."""

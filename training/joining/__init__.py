"""Examples from events: impressions labelled with the engagements that follow them, in event time."""

"""Log formatting, spans and their export, and recent delays with percentiles."""

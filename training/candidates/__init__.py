"""Lines that want to be live: the registry, scoring in shadow, what retrieval would be, and what decides."""

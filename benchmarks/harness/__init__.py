"""What benchmarks share: load clients, live systems, synthetic traffic and comparators."""

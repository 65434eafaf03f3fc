"""Shared parts of benchmarks: command lines, load clients, live systems, processes and world logs."""

"""Benchmarks and studies. Not part of the wheel."""

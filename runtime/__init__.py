"""The composition root: starts, watches and stops processes. Only benchmarks and tests import it."""

"""The composition root: starts, watches and stops processes. Only benchmarks, examples, tests import it."""

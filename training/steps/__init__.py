"""Micro-batches as data: cutting step records from the example stream, and reading them back."""

"""Shared definitions of model lines: shard spec, configuration by epoch, live epoch, and offset lookup."""

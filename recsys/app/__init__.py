"""Definitions of apps: event kinds, labels, fields and features of one stream."""

"""Offline training: epochs over the archive, with torchrec's tables or our own, alone or on Ray."""

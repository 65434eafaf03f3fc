"""The offline job: epochs over the archive, rows in torchrec's tables or our own, alone or on Ray."""

"""Work behind commands: import, change of the app, offline training, backup, checks, keys, deletion."""

"""The plug-in command ``recsys trace``: the timeline of one request, read from the log."""

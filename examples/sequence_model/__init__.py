"""A plug-in package of the group ``recsys.models``, with a ``pyproject.toml`` of its own."""

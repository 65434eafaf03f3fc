"""The shared words of the system: events, features, model, configuration, metrics and the log protocol.

Everything here may be imported by every other package; nothing here imports them (the one exception is
the composition root, ``recsys.cli``, which wires the parts together and is imported by nothing).
"""

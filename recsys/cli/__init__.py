"""The composition root: one module per command. It imports anything, lazily; nothing imports it."""

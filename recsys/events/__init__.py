"""Events and the records derived from them: types, field schema, keys, and hash-based random numbers."""

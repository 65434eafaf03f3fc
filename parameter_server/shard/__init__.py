"""The pure state machine of one shard: lanes, steps and the rules it applies."""

"""Workers and shards talking to each other: messages, sockets, the shard service and the Ray actor."""

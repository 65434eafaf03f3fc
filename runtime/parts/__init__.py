"""Part processes that only the runtime has: embedded services, Ray head, shards, Serve application, viewers."""

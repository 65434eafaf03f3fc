"""Part processes of the runtime: embedded services, Ray head, shards, Serve application."""

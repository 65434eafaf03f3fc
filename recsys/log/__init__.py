"""The log protocol and its implementations: in memory, SQLite and Kafka."""

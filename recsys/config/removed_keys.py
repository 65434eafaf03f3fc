"""Keys that the configuration had and has no more, each with what holds instead."""

from typing import Final

REMOVED: Final = {
    "access.open_scopes": "mode open allows recommend, events and read; in mode keys a key has scopes",
    "access.token_s": "a token lives for join.window_s + join.horizon_s and an hour",
    "bounds.source_ratio": "a network or key has three times its share of judgements; set bounds.floor",
    "disk.archive_days": "the archive ends by space alone; set disk.archive or disk.budget_gb",
    "doors.body_mb": "a replica receives up to 64 MiB of unfinished bodies",
    "drift.calm_examples": "each step publishes its rows",
    "drift.most_gathered": "each step publishes its rows",
    "drift.most_rate": "an alarm of drift changes nothing by itself: a raised rate moved no watch time",
    "drift.offline_command": "an alarm of drift starts no job: run `recsys offline` on a schedule",
    "drift.panel_share": "scoring of panels takes a hundredth of a core; drift.panel_examples 0 ends it",
    "drift.react": "an alarm of drift changes nothing by itself: a raised rate moved no watch time",
    "log.linger_ms": "an append to Kafka doesn't wait for others; log.compression makes less traffic",
    "model.vector_rate": "vectors learn with 0.05; set model.tables.items.learning_rate and "
    "model.tables.users.learning_rate",
    "parameter_server.transport": "rows travel over the shards' sockets",
    "promotion.guard_calibration": "predicted / observed may be 0.5 from 1 in a live line that is guarded",
    "serve.kept_disk_mb": "a replica buffers 1024 MiB of impressions on disk while the log is unavailable",
    "serve.kept_mb": "a replica buffers 64 MiB of impressions in memory while the log is unavailable",
    "serve.max_events": "a replica takes 100 calls with events at once; set serve.replicas",
    "serve.retrieval_ms": "with less than 10 ms only popular items are candidates; set serve.deadline_ms",
    "serve.rows": "replicas store rows as published; parameter_server.delta_format rounds them",
    "serve.short_rank_ms": "with less than 8 ms nothing is ranked; set serve.deadline_ms",
    "serve.upscale_s": "a replica is added after 5 s of load; set serve.target_ongoing",
}

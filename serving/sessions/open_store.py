"""Opens the session store that a configuration names."""

from contextlib import closing
from pathlib import Path

from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.process.worker_share import WHOLE, Share
from serving.sessions.cluster_store import ClusterFoldStore
from serving.sessions.session_store import FoldStore, RedisFoldStore, RedisSessions
from serving.sessions.sqlite_sessions import FILE, SqliteFoldStore, SqliteSessions, hand_over


def fold_store(
    config: Config, name: str = "", share: Share = WHOLE, partitions: int = 0
) -> RedisFoldStore | SqliteFoldStore:
    """The fold's store that the configuration names. ``name``: of the feature set."""
    if config.sessions.url == "sqlite":
        return SqliteFoldStore(Path(config.state) / FILE, machine_ms, config.sessions.ttl_s, name)
    kind = ClusterFoldStore if config.sessions.cluster else RedisFoldStore
    return kind(config.sessions.url, config.sessions.ttl_s, name, share, partitions)


def session_reader(config: Config) -> RedisSessions | SqliteSessions:
    """The store that the configuration names, for requests."""
    if config.sessions.url == "sqlite":
        return SqliteSessions(Path(config.state) / FILE, machine_ms, "")
    partitions = config.log.partitions if config.sessions.cluster else 0
    return RedisSessions(config.sessions.url, partitions=partitions)


def take_over(config: Config, target: FoldStore, name: str, share: Share = WHOLE) -> int:
    """Copies sessions that the state folder's file has and ``target`` lacks, as after an import or a run in
    one process; returns how many."""
    file = Path(config.state) / FILE
    if config.sessions.url == "sqlite" or not file.exists():
        return 0
    with closing(SqliteFoldStore(file, machine_ms, config.sessions.ttl_s, name)) as source:
        return hand_over(source, target, share)

"""Topic files of the SQLite log as this version makes them, and as versions before did."""

import pytest

from recsys.log.protocol import Topic
from recsys.log.sqlite_log import SqliteLog

_BEFORE = """
    DROP TABLE records;
    CREATE TABLE records (partition INTEGER, offset INTEGER, time_ms INTEGER, key BLOB, value BLOB,
        crc INTEGER, PRIMARY KEY (partition, offset)) WITHOUT ROWID;
"""


@pytest.fixture(params=["rows beside the index", "rows within the index"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """New topics have their rows beside their index, or within it as before."""
    if request.param == "rows beside the index":
        return
    create = SqliteLog.create

    def create_as_before(log: SqliteLog, topic: Topic) -> None:
        is_new = not log.path(topic.name).exists()
        create(log, topic)
        if is_new:
            log.connection(topic.name).db.executescript(_BEFORE)

    monkeypatch.setattr(SqliteLog, "create", create_as_before)

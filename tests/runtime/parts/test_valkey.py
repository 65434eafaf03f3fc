"""When the part takes its server for gone."""

from typing import Any

import pytest
import redis

from runtime.parts.valkey import answers


class Server:
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def ping(self) -> bool:
        raise redis.ResponseError("MISCONF Errors writing to the AOF file")  # a full disk

    def exists(self, *names: str) -> int:
        if self.error is not None:
            raise self.error
        return 0


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (None, True),
        (redis.ConnectionError("refused"), False),
        (redis.TimeoutError("hangs"), False),
        (OSError(24, "Too many open files"), False),
    ],
)
def test_a_server_on_a_full_disk_is_there_as_long_as_it_answers_reads(error: Any, answered: bool) -> None:
    client: Any = Server(error)
    assert answers(client) is answered

"""Workers of an offline job in threads of one process, which exchange messages in memory."""

from collections.abc import Callable, Sequence
from threading import Barrier, Thread
from typing import Any, TypeVar

from training.offline.sharding import Exchange, Sharding, decode, encode

T = TypeVar("T")


def together(workers: int, work: Callable[[Sharding], T], parts: int = 4) -> list[T]:
    """Runs one worker to a thread; returns the results by rank, or raises the first worker's error."""
    barrier = Barrier(workers, timeout=60)
    sent: list[list[Any]] = [[] for _ in range(workers)]
    results: list[Any] = [None] * workers
    errors: list[BaseException] = []

    def exchange_of(rank: int) -> Exchange:
        def exchange(messages: Sequence[Any], kind: Any) -> list[Any]:
            sent[rank] = [encode(message) for message in messages]
            barrier.wait()
            received = [decode(messages[rank], kind) for messages in sent]
            barrier.wait()
            return received

        return exchange

    def run(rank: int) -> None:
        try:
            results[rank] = work(Sharding(parts, rank, workers, exchange_of(rank)))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [Thread(target=run, args=(rank,), daemon=True) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    return results

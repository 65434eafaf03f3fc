"""One at a time, in order, and the loop looks around between two."""

import asyncio
import itertools

from serving.admission.fair_lock import FairLock


async def test_one_after_the_other_in_order_and_others_run_between() -> None:
    lock, seen = FairLock(), list[str]()

    async def one(name: str) -> None:
        await lock.acquire()
        try:
            seen.append(name)
            asyncio.get_running_loop().call_soon(seen.append, "else")
        finally:
            lock.release_later()

    await asyncio.gather(*[one(f"{n}") for n in range(4)])
    assert [s for s in seen if s != "else"] == ["0", "1", "2", "3"]
    for before, after in itertools.pairwise(seen):
        assert before == "else" or after == "else", seen
    assert not lock.locked()
    await lock.acquire()


async def test_who_gives_up_keeps_nobody_back() -> None:
    lock = FairLock()
    await lock.acquire()
    waiting = [asyncio.ensure_future(lock.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # while it waits
    lock.release_later()
    await asyncio.sleep(0)  # the second has been let through, and doesn't know yet
    waiting[1].cancel()
    await asyncio.wait_for(waiting[2], 1.0)
    lock.release_later()
    await asyncio.sleep(0)
    await asyncio.wait_for(lock.acquire(), 1.0)

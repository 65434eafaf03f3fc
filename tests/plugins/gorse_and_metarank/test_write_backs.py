"""Engagements that are written some time after an answer."""

import asyncio

from plugins.gorse_and_metarank.shared_handlers import WriteBacks
from serving.problem import Unavailable


async def test_each_is_written_at_its_time_and_at_the_end_the_others_are() -> None:
    written, lost = list[str](), list[str]()

    async def write(name: str) -> None:
        if name == "away":
            raise Unavailable("the log is away")
        written.append(name)

    write_backs = WriteBacks(most=4)
    for name, delay_s in (("late", 3600.0), ("soon", 0.02), ("away", 0.01), ("sooner", 0.01)):
        assert not write_backs.full()
        write_backs.schedule(delay_s, lambda name=name: write(name), lambda name=name: lost.append(name))
    assert write_backs.full() and len(write_backs) == 4
    await asyncio.sleep(0.2)
    assert sorted(written) == ["soon", "sooner"] and lost == ["away"] and len(write_backs) == 1
    await write_backs.close()
    assert written[-1] == "late" and len(write_backs) == 0

"""One picture a second, whoever looks and however many; none while nobody does."""

import asyncio
from contextlib import aclosing

import pytest

from serving.control_room.hub import Full, Hub, event


class Painted:
    def __init__(self) -> None:
        self.made, self.fails = 0, False

    def __call__(self) -> bytes:
        self.made += 1
        if self.fails:
            raise OSError("the log is away")
        return str(self.made).encode()


async def some(hub: Hub, count: int) -> list[bytes]:
    found = []
    async with aclosing(hub.subscribe()) as pictures:
        async for picture in pictures:
            found.append(picture)
            if len(found) == count:
                break
    return found


async def test_all_see_the_same_and_it_is_made_once() -> None:
    paint = Painted()
    hub = Hub(paint, every_s=0.02)
    one, two, three = await asyncio.gather(*(some(hub, 4) for _ in range(3)))
    assert one == two == three == [event("picture", str(n).encode()) for n in (1, 2, 3, 4)]
    assert hub.pages == 0 and paint.made <= 5
    made = paint.made
    await asyncio.sleep(0.15)
    assert paint.made == made  # nobody looks
    assert len(await some(hub, 2)) == 2 and paint.made > made


async def test_a_failure_is_told_and_the_next_picture_comes() -> None:
    paint = Painted()
    paint.fails = True
    hub = Hub(paint, every_s=0.01)
    async with aclosing(hub.subscribe()) as pictures:
        assert await anext(pictures) == event("trouble", b"OSError")
        paint.fails = False
        found = [await anext(pictures) for _ in range(3)]
    assert found[-1].startswith(b"event: picture") and 0 < hub.pictures < paint.made


async def test_so_many_may_look_and_who_ends_makes_room() -> None:
    hub = Hub(Painted(), every_s=0.01, max_pages=2)
    watching = [asyncio.create_task(some(hub, 10_000)) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(Full, match="at most 2"):
        await some(hub, 1)
    assert hub.pages == 2
    for page in watching:
        page.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    assert hub.pages == 0 and len(await some(hub, 1)) == 1

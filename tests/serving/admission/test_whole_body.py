"""Bodies are received whole, within bounds of bytes and time, before a request is admitted."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission.whole_body import MAX_BODY_BYTES, MAX_VALUES, BodyReceiver, BodyRefused, BodyRoom

SOURCES = st.sampled_from("abc")


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Client:
    """Sends messages, then nothing."""

    def __init__(self, messages: Iterable[dict[str, Any]]) -> None:
        self.messages, self.received = list(messages), 0

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.sleep(60)
        self.received += 1
        return self.messages.pop(0)


def scope(method: str = "POST", **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "headers": pairs}


def receive(client: Client, room: BodyRoom, about: dict[str, Any], reads: int = 1) -> list[Any]:
    async def whole() -> list[Any]:
        receiver = BodyReceiver(room, timeout_s=0.01)
        after = await receiver.whole(about, client.receive, "source")
        return [await after() for _ in range(reads)]

    return asyncio.run(whole())


def test_a_body_in_parts_is_one_message_and_then_come_the_clients_own() -> None:
    room, left = BodyRoom(400), {"type": "http.disconnect"}
    client = Client([part(b"a" * 60), part(b""), part(b"b" * 900, more=False), left])
    assert receive(client, room, scope(), 2) == [part(b"a" * 60 + b"b" * 900, more=False), left]
    assert room.used == 0


@pytest.mark.parametrize(
    ("about", "messages", "status"),
    [
        (scope(content_length=str(MAX_BODY_BYTES + 1)), [], 413),
        (scope(content_length="9" * 5_000), [], 413),
        (scope(), [part(b"x" * 500_000)] * 2 + [part(b"x", more=False)], 413),
        (scope(), [part(b"x" * MAX_BODY_BYTES + b"x", more=False)], 413),
        (scope(content_length="10"), [], 408),
        (scope(), [part(b"x")] * 3, 408),
        (scope(), [part(b"x"), {"type": "http.disconnect"}], 400),
        (scope(), [part(b"x" * 600_000)] * 2, 503),
    ],
)
def test_a_body_that_is_too_large_too_slow_or_broken_off_is_refused(
    about: dict[str, Any], messages: list[dict[str, Any]], status: int
) -> None:
    room = BodyRoom(4 * (500_000 if status == 503 else MAX_BODY_BYTES))
    with pytest.raises(BodyRefused) as refused:
        receive(Client(messages), room, about)
    assert refused.value.status == status
    assert room.used == 0


def test_a_request_without_a_body_waits_for_none() -> None:
    client = Client([part(b"", more=False)])
    assert receive(client, BodyRoom(0), scope("GET")) == [part(b"", more=False)]


def test_the_largest_body_passes_and_takes_no_room_if_it_comes_at_once() -> None:
    client = Client([part(b"x" * MAX_BODY_BYTES, more=False)])
    [whole] = receive(client, BodyRoom(0), scope(content_length=str(MAX_BODY_BYTES)))
    assert len(whole["body"]) == MAX_BODY_BYTES


def test_a_body_of_many_values_is_refused_whatever_its_shape() -> None:
    for start, filler, end in ((b"[0", b",0", b"]"), (b"", b"[", b""), (b"0", b"{}", b"")):
        for values, is_refused in ((MAX_VALUES, False), (MAX_VALUES + 1, True)):
            body = start + filler * (values - start.count(b"[")) + end
            client = Client([part(body, more=False)])
            if is_refused:
                with pytest.raises(BodyRefused, match=f"{MAX_VALUES}: send it in parts"):
                    receive(client, BodyRoom(0), scope())
            else:
                assert receive(client, BodyRoom(0), scope())


@given(st.lists(st.tuples(SOURCES, st.integers(0, 50)), max_size=60))
def test_no_source_fills_the_room_and_everything_is_given_back(takes: list[tuple[str, int]]) -> None:
    room, taken = BodyRoom(100), list[tuple[str, int]]()
    for source, size in takes:
        mine = sum(other for name, other in taken if name == source)
        fits = mine + size <= 25 and room.used + size <= 100
        assert room.take(source, size) == fits
        if fits:
            taken.append((source, size))
        assert room.used == sum(size for _, size in taken)
    for source, size in taken:
        room.give_back(source, size)
    assert room.used == 0 and not room._by_source

"""Events that come again while their first batch is being committed."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.harness.memory_sessions import MemorySessions
from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config
from recsys.events.field_schema import CATEGORICAL, Schema
from recsys.log.protocol import Append, LogUnavailable
from serving.access.caller import SERVER, Caller
from serving.access.quotas import Quotas
from serving.ingestion import write_api
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, RETRY, EventValidator
from serving.ingestion.log_writer import LogWriter
from serving.ingestion.write_api import OverQuota, WriteApi
from serving.problem import Unavailable
from serving.tracing.freshness import Freshness
from tests.support.serving.service_harness import NOW_MS, view


class Writer(LogWriter):
    """Commits when it is told."""

    def __init__(self) -> None:
        self.commits: list[tuple[Sequence[Append], Future[list[int]]]] = []

    def commit(self, topic: str, records: Sequence[Append]) -> Future[list[int]]:
        self.commits.append((records, Future()))
        return self.commits[-1][1]

    def end(self, number: int, failed: bool = False) -> None:
        records, done = self.commits[number]
        if failed:
            done.set_exception(LogUnavailable("no room"))
        else:
            done.set_result(list(range(len(records))))


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def api(writer: Writer) -> WriteApi:
    validator = EventValidator(Config())
    return WriteApi(Config(), writer, MemorySessions(), Freshness(), validator, lambda: NOW_MS)


def like(event_id: str) -> dict[str, Any]:
    return view("r", "v1", event_id, kind="like", watch_ms=None)


def send(api: WriteApi, *event_ids: str) -> "asyncio.Task[Any]":
    return asyncio.ensure_future(api.append_events([like(e) for e in event_ids], SERVER))


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_event_sent_many_times_at_once_is_accepted_once(writer: Writer, api: WriteApi) -> None:
    sent = [send(api, "e") for _ in range(20)]
    await turns()
    assert len(writer.commits) == 1
    writer.end(0)
    batches = await asyncio.gather(*sent)
    assert sum(batch.count(ACCEPTED) for batch in batches) == 1
    assert sum(batch.count(DUPLICATE) for batch in batches) == 19
    assert len(writer.commits) == 1
    api.close()


async def test_if_the_first_fails_exactly_one_of_the_others_is_accepted(
    writer: Writer, api: WriteApi
) -> None:
    sent = [send(api, "e", f"own{n}") for n in range(4)]
    await turns()
    writer.end(0, failed=True)
    with pytest.raises(Unavailable, match="no room"):
        await sent[0]
    await turns()
    assert len(writer.commits) == 2  # one took it on, the others wait for that
    writer.end(1)
    await turns()
    for number in (2, 3):
        writer.end(number)
    batches = await asyncio.gather(*sent[1:])
    assert sorted(batch.count(ACCEPTED) for batch in batches) == [1, 1, 2]
    api.close()


async def test_other_events_wait_for_nobody(writer: Writer, api: WriteApi) -> None:
    waiting, other = send(api, "a", "b"), send(api, "c")
    await turns()
    writer.end(1)
    assert (await other).count(ACCEPTED) == 1
    writer.end(0)
    assert (await waiting).count(ACCEPTED) == 2
    api.close()


async def test_the_wait_ends(writer: Writer, api: WriteApi, monkeypatch: pytest.MonkeyPatch) -> None:
    first = send(api, "e")
    await turns()
    monkeypatch.setattr(write_api, "COMMIT_WAIT_S", 0.01)
    with pytest.raises(Unavailable, match="still being committed"):
        await send(api, "e")
    writer.end(0)
    assert (await first).count(ACCEPTED) == 1
    api.close()


def test_batches_that_share_events_are_validated_a_few_times_each(
    writer: Writer, api: WriteApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these batches has one event of each other batch: commits one by one would validate 20 times."""

    async def scenario() -> None:
        validated = 0
        validate = EventValidator.validate

        def counting(*args: Any) -> Any:
            nonlocal validated
            validated += 1
            return validate(*args)

        monkeypatch.setattr(EventValidator, "validate", counting)
        pairs = [(a, b) for a in range(20) for b in range(a)]
        sent = [send(api, f"own{n}", *(f"{a}-{b}" for a, b in pairs if n in (a, b))) for n in range(20)]
        for number in range(20):
            await turns()
            if number < len(writer.commits):
                writer.end(number)
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        assert validated <= 4 * 20
        refused = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
        assert refused and {outcome.status for outcome in refused} == {503}
        taken = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        assert len(taken) + len(refused) == 20 and all(b.count(ACCEPTED) for b in taken)
        api.close()

    asyncio.run(scenario())


async def test_a_repeat_takes_nothing_of_the_quota(writer: Writer) -> None:
    """Neither afterwards nor while the event is being committed."""
    config = replace(Config(), access=AccessConfig(user_events=0.2))  # two at once
    validator = EventValidator(config, wait_s=Quotas(config).event)
    api = WriteApi(config, writer, MemorySessions(), Freshness(), validator, lambda: NOW_MS)

    def sent(event_id: str) -> "asyncio.Task[Any]":
        return asyncio.ensure_future(api.append_events([like(event_id)], Caller(user_id="u")))

    first, same = sent("e"), [sent("e") for _ in range(3)]
    await turns()
    writer.end(0)
    assert (await first).count(ACCEPTED) == 1
    assert {batch.count(DUPLICATE) for batch in await asyncio.gather(*same)} == {1}
    for _ in range(5):
        assert (await sent("e")).count(DUPLICATE) == 1
    second = sent("f")
    await turns()
    writer.end(1)
    assert (await second).count(ACCEPTED) == 1
    over = await sent("g")
    assert over.count(RETRY) == 1 and over.wait_s == 5
    with pytest.raises(Unavailable, match=r"1 of 1 events are over access\.user_events") as error:
        OverQuota.check(over)
    assert (error.value.status, error.value.retry_after_s) == (429, 5)
    api.close()


async def test_without_disk_space_events_are_refused_with_507_and_erasures_are_not(writer: Writer) -> None:
    full = [True]
    validator = EventValidator(Config())
    api = WriteApi(
        Config(), writer, MemorySessions(), Freshness(), validator, lambda: NOW_MS,
        is_full=lambda: full[0],
    )  # fmt: skip
    with pytest.raises(Unavailable, match=r"disk\.budget_gb") as refused:
        await send(api, "e")
    assert (refused.value.status, refused.value.retry_after_s) == (507, 30)
    with pytest.raises(Unavailable, match=r"disk\.budget_gb"):
        await api.put_preferences([{"user_id": "u", "value": "i1", "wish": "block"}])
    assert not writer.commits
    erasure = asyncio.ensure_future(api.erase_user("u"))
    await turns()
    assert len(writer.commits) == 1
    erasure.cancel()
    full[0] = False
    sent = send(api, "e")  # the same event is no repeat: it was never accepted
    await turns()
    writer.end(1)
    assert (await sent).count(ACCEPTED) == 1
    api.close()


async def test_a_misspelt_field_of_an_item_is_content_with_a_warning(writer: Writer) -> None:
    validator = EventValidator(Config())
    schema = Schema(item=(("topics", CATEGORICAL),))
    api = WriteApi(Config(), writer, MemorySessions(), Freshness(), validator, lambda: NOW_MS, schema=schema)
    items = [
        {"item_id": "a", "fields": {"topcis": ["tea"]}},
        {"item_id": "b", "fields": {"topics": ["tea"], "title": "Tea"}},
    ]
    sent = asyncio.ensure_future(api.put_items(items))
    await turns()
    writer.end(0)
    first, second = await sent
    assert (first.status, second.status) == (ACCEPTED, ACCEPTED)
    assert first.warning is not None and second.warning is None
    assert (first.warning.field, first.warning.value) == ("fields.topcis", "['tea']")
    assert first.warning.expected.startswith("topics")
    api.close()

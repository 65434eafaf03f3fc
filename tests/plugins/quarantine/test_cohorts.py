"""Detectors of cohorts: who is named among simulated people, with lists that no model made."""

from collections import defaultdict

import msgspec
import pytest

from benchmarks.studies.poisoning.attackers import DISLIKES, DRIP, FARM, HIJACK, Attack, AttackedWorld
from plugins.quarantine.cohorts import Accounts
from recsys.events.event_types import UNPROVEN, USER_PROVEN, Engagement, Event, User, Verdict
from recsys.events.hashing import uniform

HOUR_MS = 3_600_000


def world(seed: int = 0, users: int = 80) -> AttackedWorld:
    return AttackedWorld(seed, users, 60, publish_every_s=1e6, requests_per_s=users / 6_000)


def happened(its: AttackedWorld, hours: float = 10.0) -> list[Event]:
    """Engagements with random lists without items that a person has seen."""
    events: list[Event] = []
    seen: dict[str, set[str]] = defaultdict(set)
    stop_ms = its.start_ms + round(hours * HOUR_MS)
    for number, (request, attacks) in enumerate(its.all_requests(its.start_ms, stop_ms)):
        draws = [f"w{int(uniform(its.seed, number, rank) * 60)}" for rank in range(20)]
        items = [item for item in dict.fromkeys(draws) if item not in seen[request.user_id]][:8]
        seen[request.user_id].update(items)
        events += its.engagements(request, attacks, items, f"r{number}")
    return events


def accounts_of(events: list[Event]) -> Accounts:
    accounts = Accounts()
    for event in events:
        accounts.feed(event)
    return accounts


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_named_where_nobody_attacks(seed: int) -> None:
    assert accounts_of(happened(world(seed))).cohorts() == []


@pytest.mark.parametrize("style", [FARM, DISLIKES])
def test_a_farm_is_named_with_its_target_and_nobody_else(style: str) -> None:
    its = world().attacked(Attack(style, ("w7",), share=0.04))
    [cohort] = accounts_of(happened(its)).cohorts()
    assert (list(cohort.users), cohort.items) == (its.accounts, ("w7",))
    assert cohort.pushes == (style == FARM) and cohort.nats > 20


def test_a_farm_without_repeats_is_named_by_its_engagements_alone() -> None:
    its = world().attacked(Attack(FARM, ("w7",), share=0.04, repeats=1))
    [cohort] = accounts_of(happened(its)).cohorts()
    assert list(cohort.users) == its.accounts and not any("repeats 1" in m for m in cohort.marks)


def like(user: str, item: str, time_ms: int) -> Engagement:
    return Engagement(time_ms=time_ms, request_id=f"r{user}{item}", user_id=user, item_id=item, kind="like")


def test_accounts_that_come_together_for_one_item_are_named_and_no_rule_holds_them() -> None:
    its = world()
    honest, attack_ms = happened(its), its.start_ms + 9 * HOUR_MS
    attack: list[Event] = [like(f"a{n}", "w7", attack_ms + n) for n in range(20)]
    accounts = accounts_of([*honest, *attack])
    [cohort] = accounts.cohorts()
    assert sorted(cohort.users) == sorted(f"a{n}" for n in range(20)) and cohort.items == ("w7",)
    assert cohort.marks == ("together 20",) and accounts.over(1.0) == []
    spread: list[Event] = [like(f"a{n}", f"w{n}", attack_ms + n) for n in range(20)]
    assert accounts_of([*honest, *spread]).cohorts() == []
    apart: list[Event] = [like(f"a{n}", "w7", its.start_ms + n * HOUR_MS // 2) for n in range(20)]
    assert accounts_of([*honest, *apart]).cohorts() == []


def test_an_item_that_many_like_at_other_times_brings_people_together() -> None:
    people: list[Event] = [like(f"u{n}", f"w{n % 3}", n * HOUR_MS // 10) for n in range(300)]
    together: list[Event] = [like(f"b{n}", "w1", 20 * HOUR_MS + n) for n in range(6)]
    others: list[Event] = [like(f"c{n}", f"w{n % 3}", 20 * HOUR_MS + n) for n in range(12)]
    assert accounts_of([*people, *together, *others]).cohorts() == []


def test_hijacked_people_are_named() -> None:
    its = world(1).attacked(Attack(HIJACK, ("w7",), share=0.04, from_ms=world().start_ms + HOUR_MS))
    named = {user for c in accounts_of(happened(its)).cohorts() for user in c.users}
    assert named and named <= set(its.accounts) and all(user.startswith("u") for user in named)


def test_a_drip_watches_like_a_person_and_likes_its_target() -> None:
    its = world().attacked(Attack(DRIP, ("w7",), share=0.04))
    events = [e for e in happened(its) if isinstance(e, Engagement) and e.user_id == "a0"]
    assert {str(e.item_id) for e in events if e.kind == "skip"} > set()
    pushed = [e.kind for e in events if e.item_id == "w7"]
    assert len(pushed) == len(set(pushed)) and len({str(e.item_id) for e in events}) > 5


def test_events_of_others_name_nobody() -> None:
    framed: list[Event] = [
        msgspec.structs.replace(event, user_id="u5", proof=UNPROVEN)
        for event in happened(world().attacked(Attack(FARM, ("w7",))), 3.0)
        if isinstance(event, Engagement) and str(event.user_id).startswith("a")
    ]
    assert framed and accounts_of([*happened(world(), 3.0), *framed]).cohorts() == []


def test_who_is_in_quarantine_or_gone_is_not_named_again() -> None:
    its = world().attacked(Attack(FARM, ("w7",), share=0.04))
    accounts = accounts_of(happened(its))
    first, *others = its.accounts
    accounts.feed(Verdict(time_ms=1, user_id=first, quarantined=True))
    assert accounts.quarantined == [first]
    assert all(first not in cohort.users for cohort in accounts.cohorts())
    accounts.feed(Verdict(time_ms=2, user_id=first, quarantined=False))
    # Lifting clears the evidence, or the next look would name the account again.
    assert accounts.quarantined == []
    assert all(first not in cohort.users for cohort in accounts.cohorts())
    accounts.feed(User(time_ms=3, user_id=others[0], removed=True))
    assert all(others[0] not in cohort.users for cohort in accounts.cohorts())


def test_no_events_name_nobody() -> None:
    assert accounts_of([]).cohorts() == []


def test_repeats_that_the_doors_refused_are_evidence_with_a_user_token() -> None:
    its = world().attacked(Attack(FARM, ("w7",), share=0.04))
    seen: set[tuple[str, str, str]] = set()
    events: list[Event] = []
    for event in happened(its):
        assert isinstance(event, Engagement)
        use = (event.request_id, str(event.item_id), event.kind)
        repeat = use in seen
        seen.add(use)
        events.append(msgspec.structs.replace(event, proof=USER_PROVEN) if repeat else event)
    [cohort] = accounts_of(events).cohorts()
    assert list(cohort.users) == its.accounts and cohort.nats > 50


def small_town(pushers: int, *, sinks: bool = False) -> list[Event]:
    """Sixty people who like or skip a few items, and accounts, all but the first of one network, that
    like one item twice, or hide it."""
    events: list[Event] = []

    def engage(user: str, item: str, kind: str, source: int, at_ms: int) -> None:
        events.append(
            Engagement(
                time_ms=at_ms, request_id=f"{user}-{at_ms}", user_id=user, item_id=item, kind=kind,
                source=source,
            )
        )  # fmt: skip

    for n in range(60):
        for m in range(12):
            kind = ("like", *["view"] * 5, "skip", *["view"] * 3, "long_view")[(5 * n + m) % 11]
            engage(f"u{n}", f"i{(n + m) % 40}", kind, n // 2, 200 + m)
    for n in range(pushers):
        for m in range(56):
            engage(f"a{n:02}", f"i{(3 * n + m) % 60}", "view", 99 if n else 98, 200 + m)
        for kind in ("hide",) if sinks else ("like", "like", "long_view"):
            engage(f"a{n:02}", "target", kind, 99 if n else 98, 100)
    return events


def test_evidence_in_nats() -> None:
    [pushing] = accounts_of(small_town(5)).cohorts()
    assert (pushing.users, pushing.items) == (tuple(f"a{n:02}" for n in range(5)), ("target",))
    assert pushing.nats == pytest.approx(10.083543863226) and pushing.pushes
    assert pushing.marks == ("selective 22", "repeats 16", "all kinds 7", "network 7")
    [sinking] = accounts_of(small_town(6, sinks=True)).cohorts()
    assert len(sinking.users) == 6
    assert sinking.nats == pytest.approx(25.330339078155) and not sinking.pushes
    assert sinking.marks == ("selective 46", "network 7", "all kinds 0", "repeats 0")


def test_a_rule_holds_cohorts_of_twenty_accounts_and_a_person_judges_larger_ones() -> None:
    few, many = (accounts_of(small_town(size, sinks=True)) for size in (20, 21))
    [cohort] = few.cohorts()
    assert few.over(cohort.nats) == [cohort] and few.over(cohort.nats + 1e-9) == []
    assert len(many.cohorts()) == 1 and many.over(1.0) == []


def test_old_judgements_are_no_evidence() -> None:
    accounts = accounts_of(small_town(5))
    accounts.forget_before(100)  # the target was liked at 100
    [cohort] = accounts.cohorts()
    assert cohort.items == ("target",)
    accounts.forget_before(101)
    assert accounts.cohorts() == [] and not accounts.over(0.0)

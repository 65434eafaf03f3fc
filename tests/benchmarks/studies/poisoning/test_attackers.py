"""Attackers of the simulated world: pure functions of the seed, beside people whom they don't change."""

import pytest

from benchmarks.studies.poisoning.attackers import DISLIKES, DRIP, FARM, HIJACK, Attack, AttackedWorld
from examples.short_video.world import AFTER, Request

HOUR_MS = 3_600_000
ITEMS = [f"w{index}" for index in range(8)]


def world(seed: int = 0) -> AttackedWorld:
    return AttackedWorld(seed, 200, 50, requests_per_s=0.05)


def attacked(style: str, **more: float) -> AttackedWorld:
    its = world()
    return its.attacked(Attack(style, ("w3",), from_ms=its.start_ms + HOUR_MS, **more))  # type: ignore[arg-type]


def test_requests_of_people_are_those_of_the_world_without_an_attack() -> None:
    its, until_ms = attacked(FARM), world().start_ms + 3 * HOUR_MS
    pairs = list(its.all_requests(its.start_ms, until_ms))
    honest = list(world().next_requests(its.start_ms, until_ms))
    assert [request for request, attacks in pairs if not attacks] == honest
    assert pairs == sorted(pairs, key=lambda pair: pair[0].time_ms)
    farm = [request for request, attacks in pairs if attacks]
    assert {request.user_id for request in farm} == {"a0", "a1"} == set(its.accounts)
    assert min(request.time_ms for request in farm) >= its.start_ms + HOUR_MS
    assert 70 <= len(farm) <= 84  # two accounts, two hours, twenty lists an hour
    # Another cut of time gives the same requests.
    cut_ms = its.start_ms + 2 * HOUR_MS
    parts = [*its.attack_requests(0, cut_ms), *its.attack_requests(cut_ms, until_ms)]
    assert parts == farm


def test_a_farm_likes_its_target_in_every_way_again_and_again() -> None:
    events = attacked(FARM, repeats=3).attack_list("a0", ITEMS, "r", 5)
    pushed = [event.kind for event in events if event.item_id == "w3"]
    assert sorted(pushed) == sorted([*["long_view", *AFTER] * 3, "view"])
    assert {event.kind for event in events if event.item_id != "w3"} == {"skip", "view"}
    assert len({event.event_id for event in events}) == len(events)
    assert [event.time_ms for event in events] == sorted(event.time_ms for event in events)
    assert all(event.request_id == "r" and event.user_id == "a0" for event in events)


def test_dislikes_hide_the_rival() -> None:
    events = attacked(DISLIKES, repeats=2).attack_list("a0", ITEMS, "r", 5)
    rival = [event.kind for event in events if event.item_id == "w3"]
    assert sorted(rival) == ["hide", "hide", "skip", "skip", "view"]


def test_a_drip_asks_as_often_as_people_and_watches_others_as_they_do() -> None:
    its = attacked(DRIP)
    requests = list(its.attack_requests(0, its.start_ms + 25 * HOUR_MS))
    assert 36 <= len(requests) <= 48  # 21.6 a day of each
    events = its.attack_list("a0", ITEMS, "r", its.start_ms)
    others = [event for event in events if event.item_id != "w3"]
    watched = its.react("a0", ITEMS, "r", its.start_ms)
    assert others == [event for event in watched if event.item_id != "w3"]
    assert len([e for e in events if e.item_id == "w3"]) == len(AFTER) + 2


def test_hijacked_accounts_are_people_who_go_on() -> None:
    its = attacked(HIJACK)
    people = {f"u{index}" for index in range(200)}
    assert len(its.accounts) == 2 and set(its.accounts) <= people
    account = its.accounts[0]
    assert its.source_of(account) != its.source_of(account, attacks=True)


def test_engagements_carry_the_network_they_come_from() -> None:
    its = attacked(FARM)
    farm = its.engagements(Request(its.start_ms, "a0"), True, ITEMS, "r")
    assert {event.source for event in farm} <= {1, 2}
    people = its.engagements(Request(its.start_ms, "u1"), False, ITEMS, "r")
    assert {event.source for event in people} == {its.source_of("u1")}
    networks = {its.source_of(f"u{index}") for index in range(200)}
    assert 40 < len(networks) <= 67


def test_without_an_attack_nobody_attacks_and_an_unknown_style_is_refused() -> None:
    assert world().accounts == [] and list(world().attack_requests(0, 1 << 42)) == []
    with pytest.raises(ValueError, match="style is 'flood', expected one of farm, drip"):
        Attack("flood", ())

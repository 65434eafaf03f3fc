"""A small event log made from the simulated world, for tests that replay one."""

import json
from pathlib import Path

import msgspec

from examples.short_video.world import World
from recsys.events.event_types import Event, Impression, ServedItem
from recsys.events.hashing import uniform


def write_log(folder: Path, *, requests: int, users: int = 40, items: int = 120, seed: int = 3) -> Path:
    """Lists drawn at random, answered by the world, as ``dataset.yaml`` and ``events.jsonl``."""
    world = World(seed=seed, users=users, items=items, topics=6, publish_every_s=1e6)
    start_ms = world.start_ms
    events: list[Event] = [*world.items(start_ms), *world.users()]
    for index in range(requests):
        now_ms = start_ms + 20_000 * index
        user_id = f"u{int(uniform(seed, 'who', index) * users)}"
        chosen = [f"w{int(uniform(seed, 'what', index, rank) * items)}" for rank in range(4)]
        ids = list(dict.fromkeys(chosen))
        request_id = f"r{index}"
        listed = [ServedItem(item_id=item_id) for item_id in ids]
        events.append(Impression(time_ms=now_ms, request_id=request_id, user_id=user_id, items=listed))
        events.extend(world.react(user_id, ids, request_id, now_ms))
    events.sort(key=lambda event: event.time_ms)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text("labels: [long_view, like]\nwindow_s: 120\nall_shown: false\n")
    lines = (json.dumps(msgspec.to_builtins(event)) for event in events)
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    return folder

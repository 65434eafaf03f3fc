"""The part that looks after the shards: whose Ray it is decides what it leaves behind."""

import signal
from dataclasses import replace

import pytest

from recsys.cli import plan as plans
from recsys.cli import shards
from recsys.config import Config
from recsys.loops import Stop
from tests.toy_plan import FREE


@pytest.mark.parametrize("address, ended", [("", False), ("10.0.0.1:6379", True)])
def test_only_in_a_cluster_of_others_do_the_actors_end_with_the_part(
    tmp_path, monkeypatch, address, ended
):
    import ray

    config, plan = plans.resolve(
        replace(Config(), state=str(tmp_path), serve=FREE), ray_address=address
    )
    plans.write(config, plan)
    stop, said = Stop(), []

    class Keeper:
        statuses, started = (), 1

        def __init__(self, *_):
            pass

        def start(self):
            stop.set()
            return True

        def ask(self):
            return True

        def end(self):
            said.append("ended")

    monkeypatch.setattr(shards, "Keeper", Keeper)
    before = signal.getsignal(signal.SIGTERM)
    # Ray's driver takes the signal by which a part is asked to stop.
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(ray, "shutdown", lambda: said.append("left"))
    try:
        shards.run(config, stop)
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == (["ended", "left"] if ended else ["left"])

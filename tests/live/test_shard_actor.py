"""Shards as Ray actors: the same bits over their sockets, also after a kill."""

import threading
import time
from dataclasses import replace

import pytest

from parameter_server.publish.deltas import DeltaAssembler
from parameter_server.rpc.parameter_client import LocalClient, ShardedClient, WorkerId, hello
from parameter_server.rpc.transport import SocketChannel
from recsys.config.system_config import Config, StepConfig
from recsys.events.records import DELTAS
from recsys.log.protocol import LogUnavailable
from recsys.process.open_log import create_topics, open_log
from tests.support.parameter_server.small_line import DENSE, LANES, toy_spec, work
from tests.support.paths import ROOT

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.pairs(16)]
STEPS, ALL = 24, list(range(LANES))


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    root = str(ROOT)
    ray.init(  # a new one: another test's may run beside it
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


def config_in(folder):
    config = Config(state=str(folder), step=StepConfig(lanes=LANES, snapshot_every=10, snapshot_s=0))
    log = open_log(config)
    create_topics(log, config)
    return config, log


def run(actors, spec, handles, workers, generation, until=STEPS):
    errors = []

    def one(worker):
        try:
            client = actors.connect(spec, handles, WorkerId(worker, workers, generation))
            work(client, ALL[worker::workers], until)
            client.close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(w,)) for w in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors and not any(t.is_alive() for t in threads), errors


def connected(spec, actor):
    who = WorkerId(0, 1, 1)
    return ShardedClient(spec, [SocketChannel(actor.address, lambda token: hello(spec, 0, who, token))], who)


def expected(spec):
    client = LocalClient.fresh(spec, DENSE)
    work(client, ALL, STEPS)
    return [shard.digest() for shard in client.shards]


def deltas(log, least):
    """All that was published, once it is so many at least: the newest come behind the answers."""
    until = time.monotonic() + 30
    while log.end(DELTAS, 0) < least and time.monotonic() < until:
        time.sleep(0.02)
    return log.read(DELTAS, 0, 0)


def test_a_delta_that_could_not_be_published_goes_out_when_the_shard_is_looked_at(tmp_path, monkeypatch):
    from parameter_server.rpc import shard_actor as actors

    config, log = config_in(tmp_path)
    spec, away, real = toy_spec(1), [True], actors.delta_publisher

    def delta_publisher(*of):
        def publish(deltas):
            if away[0]:
                raise LogUnavailable("deltas is away")
            real(*of)(deltas)

        return publish

    monkeypatch.setattr(actors, "delta_publisher", delta_publisher)
    actor = actors.ShardActor(spec, config, DENSE.tobytes())
    try:
        client = connected(spec, actor)
        work(client, ALL, 1)
        client.close()
        assert actor.status()["unpublished"] == 1 and log.end(DELTAS, 0) == 0
        away[0] = False
        assert actor.status()["unpublished"] == 0
        assert len(deltas(log, 1)) == 1
    finally:
        actor.stop()


def test_a_killed_shard_comes_back_and_changes_no_bit(ray, tmp_path):
    from parameter_server.rpc import shard_actor as actors

    config, log = config_in(tmp_path)
    spec = toy_spec(2, line="killed")
    handles = actors.start_shards(spec, config, DENSE)
    try:
        run(actors, spec, handles, 2, 1, until=13)
        ray.kill(handles[1], no_restart=False)
        run(actors, spec, actors.find_shards(spec), 2, 2)
        assert ray.get([handle.digest.remote() for handle in handles]) == expected(spec)
        assembler = DeltaAssembler(spec.line, 0, 0)
        steps = [s for record in deltas(log, 2 * STEPS) for s in assembler.feed(record.value)]
        assert [step.step for step in steps] == list(range(1, STEPS + 1))
        status = ray.get(handles[0].status.remote())
        assert status["step"] == STEPS and status["rows"]["features"] > 0
    finally:
        actors.stop_shards(handles)
        log.close()


def test_a_second_start_finds_the_running_shards(ray, tmp_path):
    from parameter_server.rpc import shard_actor as actors

    config, log = config_in(tmp_path)
    spec = toy_spec(1, line="twice")
    first = actors.start_shards(spec, config, DENSE)
    second = actors.start_shards(replace(spec), config, DENSE)
    try:
        assert ray.get(first[0].address.remote()) == ray.get(second[0].address.remote())
    finally:
        actors.stop_shards(first)
        log.close()


def test_stopped_shards_free_their_names_and_come_back_as_they_were(ray, tmp_path):
    from parameter_server.rpc import shard_actor as actors

    config, log = config_in(tmp_path)
    spec = toy_spec(2, line="stopped")
    run(actors, spec, actors.start_shards(spec, config, DENSE), 1, 1, until=13)
    assert len(actors.running_shards(spec)) == 2
    actors.stop_shards(actors.running_shards(spec))
    deadline = time.monotonic() + 30
    while actors.running_shards(spec):
        assert time.monotonic() < deadline, "a name is still taken"
        time.sleep(0.05)
    handles = actors.start_shards(spec, config, DENSE)
    try:
        assert [ray.get(handle.status.remote())["step"] for handle in handles] == [13, 13]
    finally:
        actors.stop_shards(handles)
        log.close()


def test_one_that_does_not_close_is_killed_all_the_same(ray):
    from parameter_server.rpc import shard_actor as actors

    @ray.remote
    class Busy:
        def stop(self):
            time.sleep(600)

    handle = Busy.options(name="busy").remote()
    actors.stop_shards([handle], timeout_s=0.5)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(handle.stop.remote(), timeout=30)

import errno
import socket
import threading
import time

import numpy as np
import pytest

from parameter_server.rpc import protocol, transport
from parameter_server.rpc.parameter_client import LocalClient, ShardUnreachable, StaleWorker, WorkerId, hello
from parameter_server.rpc.protocol import AppliedQuery, Exchange, Frame, Refusal
from parameter_server.rpc.transport import SocketChannel, receive, send
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import StepMismatch, digest_of_shards
from recsys.events.records import Delta, unpack
from tests.support.parameter_server.shard_servers import TOKEN, Servers
from tests.support.parameter_server.small_line import (
    DENSE,
    LANES,
    cut,
    lane_of,
    time_of,
    toy_spec,
    union,
    work,
)

STEPS, ALL = 24, list(range(LANES))


def expected(steps=STEPS):
    client = LocalClient.fresh(toy_spec(), DENSE)
    work(client, ALL, steps)
    return digest_of_shards(client.shards)


EXPECTED = expected()


@pytest.fixture
def servers(tmp_path):
    with Servers(tmp_path, 2) as servers:
        yield servers


class InThread:
    """A worker in a thread, with what it raised."""

    def __init__(self, servers, worker=0, workers=1, generation=1, until=STEPS, tick=lambda step: None):
        self.error, self.client = None, servers.client(worker, workers, generation)

        def run():
            try:
                work(self.client, ALL[worker::workers], until, tick=tick)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def join(self):
        self.thread.join(30)
        self.client.close()
        assert not self.thread.is_alive(), "a worker waits for ever"
        return self.error


def connect(servers, part=0):
    address = servers.address(part)
    return socket.create_connection((address.host, address.port), timeout=10)


def greeting(servers, part=0, token=TOKEN, **changes):
    import msgspec

    message = hello(servers.spec, part, WorkerId(), token)
    return Frame(msgspec.structs.replace(message, **changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"token": "wrong"}, "token is wrong"),
        ({"line": "cand-1"}, "this shard has"),
        ({"epoch": 1}, "this shard has"),
        ({"part": 1}, "this shard has"),
        ({"lanes": 8}, "this shard has"),
    ],
)
def test_who_is_not_welcome_is_told_and_cut_off(servers, changes, text):
    with connect(servers) as sock:
        send(sock, greeting(servers, **changes))
        reply = receive(sock).message
        assert isinstance(reply, Refusal) and text in reply.text and TOKEN not in reply.text
        with pytest.raises(ConnectionError):
            send(sock, Frame(AppliedQuery()))
            receive(sock)
    assert servers.servers[0].refused == 1


@pytest.mark.parametrize("lacks", ["files", "threads"])
def test_a_shard_that_runs_out_of_files_or_threads_listens_again_after_it(servers, monkeypatch, lacks):
    server, failed = servers.servers[0], []

    class Listener:
        def __init__(self, real):
            self.real = real

        def accept(self):
            if len(failed) < 3:
                failed.append(1)
                raise OSError(errno.EMFILE, "Too many open files")
            return self.real.accept()

        def __getattr__(self, name):
            return getattr(self.real, name)

    class Thread(threading.Thread):
        def start(self):
            if len(failed) < 3:
                failed.append(1)
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(transport, "_ACCEPT_PAUSE_S", 0.001)
    if lacks == "files":
        server._listener = Listener(server._listener)
        connect(servers).close()  # it waits in the real one until somebody comes
    else:
        monkeypatch.setattr(transport.threading, "Thread", Thread)
        for _ in range(3):
            with connect(servers) as sock, pytest.raises(ConnectionError):
                receive(sock)
    with connect(servers) as sock:
        sock.settimeout(5)
        send(sock, greeting(servers))
        send(sock, Frame(AppliedQuery()))
        assert receive(sock).message.applied == 0
    assert len(failed) == 3


@pytest.mark.parametrize("greeted", [False, True])
@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1", bytes(100), b"\xff" * 100], ids=range(3))
def test_rubbish_ends_its_own_connection_only(servers, rubbish, greeted):
    with connect(servers) as sock:
        if greeted:
            send(sock, greeting(servers))
        with pytest.raises(OSError):
            sock.sendall(rubbish)
            receive(sock)
    assert servers.servers[0].refused == 1
    assert InThread(servers).join() is None
    assert servers.digest() == EXPECTED


def test_no_question_before_the_greeting(servers):
    with connect(servers) as sock:
        send(sock, Frame(AppliedQuery()))
        with pytest.raises(ConnectionError):
            receive(sock)
    assert servers.servers[0].refused == 1


def served(servers):
    """Whether a worker that greets now gets an answer."""
    with connect(servers) as sock:
        send(sock, greeting(servers))
        send(sock, Frame(AppliedQuery()))
        return receive(sock).message.applied == 0


def test_a_greeting_that_drips_ends_in_time(servers, monkeypatch):
    """Each byte used to start the time-out again."""
    monkeypatch.setattr(transport, "HELLO_TIMEOUT_S", 0.2)
    data = b"".join(protocol.encode(greeting(servers)))
    with connect(servers) as sock, pytest.raises(OSError):
        for byte in data[:-1]:
            sock.sendall(bytes([byte]))
            time.sleep(0.02)
    assert servers.servers[0].refused == 1


def test_silent_connections_are_capped_and_keep_no_worker_out(servers, monkeypatch):
    monkeypatch.setattr(transport, "_MOST_UNKNOWN", 4)
    server, worker = servers.servers[0], connect(servers)
    send(worker, greeting(servers))
    send(worker, Frame(AppliedQuery()))
    assert receive(worker).message.applied == 0
    silent = [connect(servers) for _ in range(20)]
    for sock in silent[:16]:
        with pytest.raises(ConnectionError):
            receive(sock)
    with server._lock:
        assert (len(server._unknown), server.refused) == (4, 16)
    assert served(servers)
    send(worker, Frame(AppliedQuery()))
    assert receive(worker).message.applied == 0
    for sock in (worker, *silent):
        sock.close()


def test_connections_with_a_token_are_capped(servers, monkeypatch):
    monkeypatch.setattr(transport, "_MOST", 1)
    with connect(servers) as sock:
        send(sock, greeting(servers))
        send(sock, Frame(AppliedQuery()))
        receive(sock)
        with pytest.raises(ConnectionError):
            served(servers)
    assert servers.servers[0].refused == 1


@pytest.mark.slow
def test_an_idle_connection_ends_and_its_worker_goes_on(servers, monkeypatch):
    monkeypatch.setattr(transport, "_IDLE_S", 1)
    server, client = servers.servers[0], servers.client()
    assert client.applied_steps() == [0, 0]
    deadline = time.monotonic() + 30
    while server._welcomed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server._welcomed and not server.refused
    assert client.applied_steps() == [0, 0]
    client.close()


def test_a_wrong_token_fails_soon_with_its_reason(servers):
    channel = SocketChannel(
        lambda: servers.address(0),
        lambda token: greeting(servers, token="wrong").message,
        give_up_s=20,
        sleep=lambda pause_s: None,
    )
    channel.send(Frame(AppliedQuery()))
    assert "token is wrong" in channel.receive().message.text
    channel.close()


def test_a_shard_that_stays_away_is_given_up(servers):
    def gone():
        raise ConnectionError("down")

    channel = SocketChannel(gone, lambda token: None, give_up_s=0.05)
    channel.send(Frame(AppliedQuery()))
    with pytest.raises(ShardUnreachable, match="down"):
        channel.receive()


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_that_crash_now_and_then_change_no_bit(servers, workers):
    def tick(step):
        if step % 3 == 0:
            servers.kill(step % 2)
            servers.start(step % 2)

    others = [InThread(servers, worker, workers) for worker in range(1, workers)]
    assert InThread(servers, 0, workers, tick=tick).join() is None
    assert [other.join() for other in others] == [None] * len(others)
    assert servers.digest() == EXPECTED


def test_a_dead_worker_holds_nobody_for_ever(servers):
    """Half of the workers never come; a new generation frees those who wait, and starts where the line is."""
    waits = InThread(servers, 0, 2, generation=1)
    time.sleep(0.2)
    assert waits.thread.is_alive()
    newer = servers.client(generation=2)
    assert newer.applied_steps() == [0, 0]
    waits.thread.join(30)
    assert not waits.thread.is_alive()
    newer.close()
    team = [InThread(servers, worker, 2, generation=2) for worker in (0, 1)]
    assert isinstance(waits.join(), StaleWorker)
    assert [worker.join() for worker in team] == [None, None]
    assert servers.digest() == EXPECTED
    late = servers.client(generation=1)
    with pytest.raises(StaleWorker):
        late.exchange(STEPS + 1, 0, [LaneGradients(lane) for lane in ALL], None)
    late.close()


def test_lanes_of_two_generations_are_not_mixed(servers):
    first = InThread(servers, 0, 2, generation=1)
    time.sleep(0.2)
    second = InThread(servers, 1, 2, generation=2)
    assert isinstance(first.join(), StaleWorker)
    time.sleep(0.1)
    assert [shard.applied for shard in servers.shards] == [0, 0]
    assert InThread(servers, 0, 2, generation=2).join() is None
    assert second.join() is None and servers.digest() == EXPECTED


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("step", [1, 9, 13])
def test_a_step_that_only_one_shard_has_is_computed_again(servers, ahead, step):
    """Workers and a shard die after the other shard learned a step: it answers for the step before."""
    worker = servers.client()
    work(worker, ALL, step - 1)
    rows = cut(step, ALL, worker.lookup(step - 1, union(step, ALL)))
    dense = worker.dense(step - 1)
    lanes = [lane_of(step, lane, own, dense) for lane, own in zip(ALL, rows, strict=True)]
    worker._channels[1 - ahead].send = lambda frame: None
    worker._channels[1 - ahead].receive = lambda: Frame(Refusal("stale", "it died"))
    with pytest.raises(StaleWorker):
        worker.exchange(step, time_of(step), lanes, union(step + 1, ALL))
    worker.close()
    servers.kill(1 - ahead)
    servers.start(1 - ahead)
    again = servers.client(generation=2)
    where = again.applied_steps()
    assert where[ahead] == step and where[1 - ahead] == again.align() == step - 1
    again.close()
    assert InThread(servers, generation=2).join() is None
    assert servers.digest() == EXPECTED


@pytest.mark.parametrize("both", [False, True])
def test_a_shard_that_lost_its_file_takes_the_line_back_to_a_snapshot(servers, both):
    assert InThread(servers, until=17).join() is None
    servers.kill(1)
    servers.lose_wal(1)
    servers.start(1)
    client = servers.client(generation=2)
    assert client.applied_steps() == [17, 10]
    with pytest.raises(StepMismatch, match="shard 1 has applied step 10"):
        client.exchange(18, 0, [LaneGradients(lane) for lane in ALL], {"items": np.arange(3)})
    assert client.applied_steps() == [18, 10]  # the other took that step, which the rewind undoes
    assert client.align() == 10 and client.applied_steps() == [10, 10]
    client.close()
    workers = 2 if both else 1
    team = [InThread(servers, worker, workers, generation=3) for worker in range(workers)]
    assert [worker.join() for worker in team] == [None] * workers
    assert servers.digest() == EXPECTED


def test_a_log_that_is_away_is_waited_for(servers):
    shard, failures = servers.shards[0], iter(range(5))
    publish = shard._publish

    def flaky(deltas):
        if next(failures, None) is not None:
            raise OSError("the log is away")
        publish(deltas)

    shard._publish = flaky
    assert InThread(servers).join() is None
    assert servers.digest() == EXPECTED
    servers.flush()
    assert len(servers.published) == 2 * STEPS


def test_two_workers_are_answered_before_the_delta_is_published(servers):
    """Both look up rows while it waits, and the next step isn't written down before."""
    shard, free, asked = servers.shards[0], threading.Event(), threading.Event()
    publish = shard._publish

    def slow(deltas):
        asked.set()
        assert free.wait(20)
        publish(deltas)

    shard._publish = slow
    team = [InThread(servers, worker, 2, until=1) for worker in (0, 1)]
    assert [worker.join() for worker in team] == [None, None]
    assert asked.wait(20) and not [d for d in servers.published if unpack(d, Delta).part == 0]
    late = InThread(servers, 0, 1, generation=2, until=2)
    assert shard._wal.steps == (1, 1)
    free.set()
    assert late.join() is None
    servers.flush()
    steps = [its.step for its in (unpack(d, Delta) for d in servers.published) if its.part == 0]
    assert steps == [1, 2]


def test_a_publish_that_fails_once_lets_the_other_worker_go_on(servers):
    """The step is applied, and who waits for it hears so from the repeat: not when patience runs out."""
    shard, failures = servers.shards[0], iter(range(1))
    publish = shard._publish

    def flaky(deltas):
        if next(failures, None) is not None:
            raise OSError("the log is away")
        publish(deltas)

    shard._publish = flaky
    started = time.monotonic()
    team = [InThread(servers, worker, 2) for worker in (0, 1)]
    assert [worker.join() for worker in team] == [None, None]
    assert time.monotonic() - started < servers.patience_s / 2
    assert servers.digest() == EXPECTED
    servers.flush()
    assert len(servers.published) == 2 * STEPS


def test_a_full_disk_loses_nobody_s_lanes(servers):
    wal, failures = servers.shards[1]._wal, iter(range(3))
    append = wal.append

    def full(step, payload):
        if next(failures, None) is not None:
            raise OSError(28, "no space left")
        append(step, payload)

    wal.append = full
    team = [InThread(servers, worker, 2) for worker in (0, 1)]
    assert [worker.join() for worker in team] == [None, None]
    assert servers.digest() == EXPECTED


def test_a_lane_that_never_comes_is_named(tmp_path):
    with Servers(tmp_path, 1, patience_s=0.05) as servers, connect(servers) as sock:
        send(sock, greeting(servers))
        head = Exchange(1, 1, 0, [], None)
        send(sock, Frame(head))
        reply = receive(sock).message
        assert reply.kind == "failed" and "lanes [0, 1, 2, 3] of step 1" in reply.text


def test_the_token_is_in_no_text(servers):
    assert TOKEN not in repr(servers.address(0)) and TOKEN not in f"{servers.address(0)}"


def test_meanwhile_comes_between_question_and_answer_and_its_failure_leaves_no_reply(servers):
    client, seen = servers.client(), []
    lanes = [LaneGradients(lane) for lane in ALL]
    until = time.monotonic() + 60

    def applied(step):
        while min(shard.applied for shard in servers.shards) < step and time.monotonic() < until:
            time.sleep(0.01)
        return [shard.applied for shard in servers.shards]

    client.exchange(1, 0, lanes, None, lambda: seen.append(applied(1)))
    assert seen == [[1, 1]]  # learned by then, though nobody had read an answer
    with pytest.raises(ZeroDivisionError):
        client.exchange(2, 0, lanes, None, lambda: 1 // 0)
    assert applied(2) == [2, 2]
    rows = client.lookup(2, {"items": np.arange(3)})
    assert rows["items"].shape[0] == 3
    client.close()


def test_workers_that_were_let_in_are_counted(servers):
    assert {server.connections for server in servers.servers} == {0}
    client = servers.client()
    client.applied_steps()
    assert {server.connections for server in servers.servers} == {1}
    client.close()

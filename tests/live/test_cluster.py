"""Three hosts in network namespaces, started by the launcher's commands as shipped.

With mutual TLS between shards and workers the system learns over all of them, goes on with a slow one, loses
one, is cut off from one, and refuses nodes that don't fit. The weights are those of one process.
"""

import re
import shutil
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.systems.cluster_hosts import Host, missing
from tests.support.systems.cluster_run import Cluster, Viewers, wait_for
from tests.support.systems.tls_proxy import Authority

pytestmark = [
    pytest.mark.services,
    pytest.mark.hosts,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing()), reason=f"needs network namespaces: {missing()}"),
]
_LEARNS_AGAIN = 3.0  # times as long as a start takes on this machine
_ANSWERED = 0.999
# A clock that is five seconds ahead, and a package of another version, for Python alone.
_CLOCK = "import time\n_now = time.time_ns\ntime.time_ns = lambda: _now() + 5 * 10**9\n"
_PACKAGE = "Metadata-Version: 2.1\nName: numpy\nVersion: 1.0.0\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        started.start_head()
        started.start_worker(started.workers[0])
        yield started


def refused(cluster: Cluster, **variables: str) -> str:
    """The message with which `recsys up` refuses the cluster."""
    with pytest.raises(RuntimeError) as raised:
        cluster.up(variables)
    return str(raised.value)


def test_nodes_that_do_not_fit_are_refused(cluster: Cluster) -> None:
    odd = cluster.workers[1]
    folder = odd.folder / "tmp" / "odd"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_CLOCK)
    cluster.start_worker(odd, {"PYTHONPATH": "/tmp/odd"})
    message = refused(cluster)
    assert f"the clock of node {odd.address} differs by +5.0 s" in message, message
    (folder / "sitecustomize.py").unlink()
    package = folder / "numpy-1.0.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(_PACKAGE)
    cluster.start_worker(odd, {"PYTHONPATH": "/tmp/odd"})
    message = refused(cluster)
    assert f"node {odd.address} has numpy 1.0.0, expected" in message, message
    shutil.rmtree(package)
    cluster.certify(odd, Authority(folder, "other"))
    cluster.start_worker(odd)
    message = refused(cluster)
    assert re.search(rf"node {odd.address}.*certificate", message), message
    cluster.certify(odd)
    odd.run("umount /mnt/recsys")
    with pytest.raises(RuntimeError, match=r"ray.token isn't there.*recsys node --head"):
        cluster.start_worker(odd)
    odd.kill()
    odd.boot()


@pytest.fixture(scope="module")
def system(cluster: Cluster) -> Cluster:
    """The cluster with the system on its three nodes."""
    cluster.start_worker(cluster.workers[1])
    text = cluster.up()
    assert "runs in the background" in text, text
    cluster.publish()
    return cluster


def test_it_learns_over_all_hosts(system: Cluster) -> None:
    hosts = (system.head, *system.workers)
    for title in ("ray::ShardActor", "ray::RayTrainWorker"):
        assert [len(system.processes(host, title)) for host in hosts] == [1, 1, 1], title
    viewers = [Viewers(system, host) for host in (system.head, system.workers[0])]
    try:
        wait_for(lambda: system.step() >= 100, 5 * system.start_s, "100 steps are learned")
    finally:
        for each in viewers:
            each.stop()
    print({v._host.name: (v.answered, v.failed, round(v.longest_s, 2)) for v in viewers}, system.step())
    assert all(v.answered > 50 and not v.failed for v in viewers), [v.errors[:3] for v in viewers]
    settle(system)
    assert system.digests() == system.oracle()


def test_another_system_is_refused(system: Cluster) -> None:
    own = {"RECSYS__STATE": "/mnt/recsys/other"}
    assert "lets nobody in by the token of /mnt/recsys/other" in refused(system, **own)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/mnt/recsys/state/run/ray.token"}
    message = refused(system, **own, **token, RAY_ADDRESS=f"{system.head.address}:6379")
    assert "the system of /mnt/recsys/state runs on this Ray cluster" in message, message


def settle(system: Cluster) -> None:
    """Waits until no example is left to learn. A trainer that stands still isn't done."""
    wait_for(lambda: system.left() == 0, 120 + _LEARNS_AGAIN * system.start_s, "all is learned")
    time.sleep(2.5)  # windows that were still open
    wait_for(lambda: system.left() == 0, 120, "all is learned")


def test_a_host_is_slow(system: Cluster) -> None:
    slow, before = system.workers[0], system.step()
    titles = ("ray::ShardActor", "ray::RayTrainWorker")
    processes = [system.processes(slow, title) for title in titles]
    assert all(processes)
    viewers = Viewers(system, system.head)
    try:
        with slow.delayed(delay_s=0.05, loss=0.01):
            began = time.monotonic()
            socket.create_connection((slow.address, 8000), 10).close()
            assert time.monotonic() - began >= 0.1
            wait_for(lambda: system.step() > before + 20, _LEARNS_AGAIN * system.start_s, "20 steps")
            time.sleep(20)
            steps = system.step() - before
    finally:
        viewers.stop()
    print("slow: steps", steps, "lists", viewers.answered, viewers.failed,
          "longest", round(viewers.longest_s, 2), viewers.errors[:5])  # fmt: skip
    settle(system)
    assert [system.processes(slow, title) for title in titles] == processes  # it wasn't given up
    assert system.digests() == system.oracle()
    assert viewers.share >= _ANSWERED, viewers.errors[:5]


@pytest.mark.parametrize("way", ["killed", "cut off for 60 s"])
def test_a_host_is_lost(system: Cluster, way: str) -> None:
    lost: Host = system.workers[way == "killed"]  # one with shards and workers
    viewers = Viewers(system, system.head)
    try:
        time.sleep(5)
        before = system.step()
        (lost.kill if way == "killed" else lost.cut)()
        began = time.monotonic()
        time.sleep(2)
        before = system.step()  # what was on its way
        wait_for(lambda: system.step() > before + 5, _LEARNS_AGAIN * system.start_s, "steps again")
        again_s = time.monotonic() - began
        time.sleep(max(10.0, (60.0 if way != "killed" else 0.0) - again_s))
    finally:
        viewers.stop()
        lost.join()
    starts = round(again_s / system.start_s, 2)
    print(way, "steps again after", starts, "starts; lists", viewers.answered, viewers.failed,
          "longest", round(viewers.longest_s, 2), viewers.errors[:5])  # fmt: skip
    settle(system)
    assert system.digests() == system.oracle()
    assert viewers.share >= _ANSWERED, viewers.errors[:5]
    lost.kill()
    lost.boot()
    system.start_worker(lost)  # as the launcher's autoscaler does
    with system.client(lost) as client:
        again_s = wait_for(lambda: client.recommend("u1", 8).items, 6 * system.start_s, "a new node answers")
    print("a new node answers after", round(again_s / system.start_s, 2), "starts")


def test_the_head_is_lost(system: Cluster) -> None:
    settle(system)
    before, digests = system.step(), system.digests()
    system.head.kill()
    system.head.boot()
    system.start_head()
    for each in system.workers:
        system.start_worker(each)
    began = time.monotonic()
    text = system.up()
    assert "runs in the background" in text, text
    assert (system.step(), system.digests()) == (before, digests)
    viewers = Viewers(system, system.head)
    try:
        wait_for(lambda: system.step() > before + 5, _LEARNS_AGAIN * system.start_s, "steps again")
        again_s = time.monotonic() - began
        print("head lost: steps again after", round(again_s / system.start_s, 2), "starts")
    finally:
        viewers.stop()
    settle(system)
    assert system.digests() == system.oracle()
    assert viewers.answered and not viewers.failed, viewers.errors[:5]

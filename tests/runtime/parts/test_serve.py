"""The part that drives Serve: what it takes down, where it says that the API is, and restarts."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from recsys.config.safety_config import DoorsConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.process.part_process import Heartbeat, Stop, run_folder, write_atomically
from recsys.process.process_priority import STARTING, STARTS
from runtime.parts import restart
from runtime.parts import serve as part
from runtime.parts.serve import RestartRequests, answers, take_down
from runtime.supervision.launch_plan import local_api_url, public_url, resolve, write
from runtime.supervision.processes import identify
from runtime.supervision.run_file import Running
from serving.admission.admission import EVENT_CALLS
from tests.support.plan_config import config_in


class FakeServe:
    """Serve with the applications of a shared cluster."""

    def __init__(self, *names):
        self.applications, self.runs = dict.fromkeys(names), True

    def status(self):
        return SimpleNamespace(applications=self.applications)

    def delete(self, name):
        del self.applications[name]

    def shutdown(self):
        self.applications.clear()
        self.runs = False


def test_the_reason_why_no_replica_starts_is_shown():
    serve = FakeServe()
    app_is(serve, "DEPLOY_FAILED", 0)()
    with pytest.raises(RuntimeError, match="can't be started: why TypeError in a constructor"):
        part._wait_until_ready(serve, "recsys", lambda: False, Looks(None, []))


def test_another_s_application_goes_on_in_a_cluster_that_is_not_ours():
    shared, own = FakeServe("recsys", "another"), FakeServe("recsys")
    take_down(shared, "recsys", owns_ray=False)
    take_down(shared, "recsys", owns_ray=False)  # it never came up: fine
    take_down(own, "recsys", owns_ray=True)
    assert list(shared.applications) == ["another"] and not own.applications
    assert shared.runs and not own.runs


def test_on_own_nodes_of_a_cluster_serve_ends_unless_another_uses_it():
    alone, unstarted, shared = FakeServe("recsys"), FakeServe(), FakeServe("recsys", "another")
    for serve in (alone, unstarted, shared):
        take_down(serve, "recsys", owns_ray=False, own_nodes=True)
    assert not alone.runs and not unstarted.runs
    assert shared.runs and list(shared.applications) == ["another"]


@pytest.mark.parametrize(
    "host, expected",
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("192.0.2.7", "192.0.2.7")],
)
def test_the_api_is_reached_over_loopback_where_it_binds_everywhere(host, expected):
    config = replace(Config(), serve=ServeConfig(host=host, port=8001))
    assert local_api_url(config) == public_url(config) == f"http://{expected}:8001"
    tls = replace(config, doors=DoorsConfig(certificate="both.pem", local_port=20_007))
    assert (local_api_url(tls), public_url(tls)) == ("http://127.0.0.1:20007", f"https://{expected}:8001")


def test_a_certificate_gets_an_absolute_path_and_a_port_for_tools(tmp_path):
    asked = replace(config_in(tmp_path), doors=DoorsConfig(certificate="both.pem"))
    config, plan = resolve(asked)
    assert config.doors.certificate == str(Path("both.pem").resolve())
    assert 0 < config.doors.local_port not in (config.serve.port, *msgspec.structs.astuple(plan.ray))
    assert resolve(config_in(tmp_path))[0].doors == DoorsConfig()


class Looks(Stop):
    """Asked to stop after so many looks; before each something happens."""

    def __init__(self, path, before):
        super().__init__(Heartbeat("serve", path))
        self._before = iter(before)

    def wait(self, timeout_s, starting=False):
        happens = next(self._before, None)
        if happens is None:
            return True
        happens()
        return False


def app_is(serve, status, running, starting=0, feed="UPDATING"):
    deployment = SimpleNamespace(
        replica_states={"RUNNING": running, "STARTING": starting},
        status=SimpleNamespace(value=feed),
        message="TypeError in a constructor",
    )
    found = SimpleNamespace(
        status=SimpleNamespace(value=status), deployments={"Feed": deployment}, message="why"
    )
    return lambda: serve.applications.update(recsys=found)


def up_in(state, **doors):
    """As `recsys up` leaves it: a supervisor that lives, and a part that is ready."""
    write(*resolve(replace(config_in(state), doors=DoorsConfig(**doors))))
    running = Running(supervisor=identify(os.getpid()), config_digest="", started_ms=0, time_ms=0)
    write_atomically(run_folder(state) / "up.json", msgspec.json.encode(running))


def test_replicas_are_replaced_once_for_each_request_and_told_when_all_are_new(tmp_path):
    serve, deployed, told = FakeServe(), [], []
    up_in(tmp_path)
    restarts = RestartRequests(
        str(tmp_path), restart.newest_request_number(tmp_path), lambda: deployed.append(1)
    )
    stop = Looks(tmp_path / "run" / "serve.json", [])
    stop.heartbeat.ready()

    def tell():
        stop.heartbeat.write()
        told.append(stop.heartbeat.now().gauges.get(restart.GAUGE))

    def asked():
        tell()
        assert restart.request_restart("serve", tmp_path) == 1
        app_is(serve, "DEPLOYING", 1)()

    looks = [app_is(serve, "RUNNING", 2), asked, tell, lambda: (tell(), app_is(serve, "RUNNING", 2)())]
    stop._before = iter([*looks, tell, tell])
    part._monitor(serve, "recsys", stop, restarts)
    assert deployed == [1]
    assert told == [0, 0, 0, 1, 1]
    restart.wait(tmp_path, 1, timeout_s=0.0)
    with pytest.raises(TimeoutError, match="old ones still answer"):
        restart.wait(tmp_path, 2, timeout_s=0.0)


def test_who_waits_for_replicas_that_do_not_start_is_told_at_once(tmp_path):
    up_in(tmp_path)
    serve, restarts = FakeServe(), RestartRequests(str(tmp_path), 0, lambda: None)
    stop = Looks(tmp_path / "run" / "serve.json", [])
    stop.heartbeat.ready()
    stop.heartbeat.write()

    def monitor(status):
        stop._before = iter([app_is(serve, status, 1)])
        part._monitor(serve, "recsys", stop, restarts)
        stop.heartbeat.write()

    assert restart.request_restart("serve", tmp_path) == 1
    monitor("DEPLOY_FAILED")
    with pytest.raises(ValueError, match="new replicas don't start, old ones .*run/serve.log"):
        restart.wait(tmp_path, 1, timeout_s=60.0)
    assert restart.request_restart("serve", tmp_path) == 2
    with pytest.raises(TimeoutError):  # the first one's failure is not the second one's
        restart.wait(tmp_path, 2, timeout_s=0.0)
    monitor("DEPLOYING")
    with pytest.raises(TimeoutError):
        restart.wait(tmp_path, 2, timeout_s=0.0)
    monitor("RUNNING")
    restart.wait(tmp_path, 2, timeout_s=0.0)


def test_a_long_restart_is_well_as_long_as_somebody_answers(tmp_path, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(part, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    serve = FakeServe()
    restarts = RestartRequests(str(tmp_path), 0, lambda: None)

    def later():
        now_s[0] += 50.0

    looks = [app_is(serve, "DEPLOYING", 1), later, later, later]
    part._monitor(serve, "recsys", Looks(None, looks), restarts)
    looks = [app_is(serve, "UNHEALTHY", 0, starting=1), later, later, later]
    part._monitor(serve, "recsys", Looks(None, looks), restarts)
    looks = [app_is(serve, "UNHEALTHY", 1, feed="HEALTHY"), later, later, later]
    part._monitor(serve, "recsys", Looks(None, looks), restarts)  # a shard of retrieval is gone
    looks = [app_is(serve, "DEPLOY_FAILED", 1, feed="DEPLOY_FAILED"), later, later, later]
    part._monitor(serve, "recsys", Looks(None, looks), restarts)  # the new ones don't start
    with pytest.raises(RuntimeError, match="is DEPLOYING: why TypeError in a constructor"):
        looks = [app_is(serve, "DEPLOYING", 0), later, later]
        part._monitor(serve, "recsys", Looks(None, looks), restarts)


def shard_is(serve, name, running):
    deployments = serve.applications["recsys"].deployments
    states = {"RUNNING": running} if running else {"STARTING": 1}
    deployments[name] = SimpleNamespace(replica_states=states, message="reads the log")


def test_a_shard_of_retrieval_that_does_not_run_is_told_of(tmp_path, caplog):
    serve, told = FakeServe(), []
    stop = Looks(None, [])

    def tell():
        told.append(stop.heartbeat.now().gauges.get(part.SHARDS_AWAY))

    def looks(*shards):
        def look():
            tell()
            app_is(serve, "DEPLOYING", 1, feed="HEALTHY")()
            for name, running in shards:
                shard_is(serve, name, running)

        return look

    one_away = looks(("Retrieval-0", 1), ("Retrieval-1", 0))
    whole = looks(("Retrieval-0", 1), ("Retrieval-1", 1))
    stop._before = iter([looks(), one_away, one_away, whole, whole, tell])
    with caplog.at_level("INFO", logger="runtime.parts.serve"):
        part._monitor(serve, "recsys", stop, RestartRequests(str(tmp_path), 0, lambda: None), 2)
    assert told == [None, 2, 1, 1, 0, 0]
    both, one, none = caplog.records  # once for each change
    assert both.away == ["Retrieval-0", "Retrieval-1"] and one.away == ["Retrieval-1"]
    assert one.why == {"Retrieval-1": "reads the log"} and none.levelname == "INFO"


def test_where_there_are_no_shards_of_retrieval_none_is_away(tmp_path):
    serve, restarts = FakeServe(), RestartRequests(str(tmp_path), 0, lambda: None)
    stop = Looks(None, [app_is(serve, "RUNNING", 1)])
    part._monitor(serve, "recsys", stop, restarts)
    assert part.SHARDS_AWAY not in stop.heartbeat.now().gauges


def test_who_cannot_be_restarted_is_told_why(tmp_path):
    with pytest.raises(ValueError, match="part is 'joiner', expected 'serve'"):
        restart.request_restart("joiner", tmp_path)
    with pytest.raises(ValueError, match="serve isn't ready"):
        restart.request_restart("serve", tmp_path)


def test_a_renewed_certificate_that_haproxy_would_refuse_changes_nothing(tmp_path):
    """Its configuration would stay as it is, with the replicas that leave."""
    up_in(tmp_path, certificate=str(tmp_path / "both.pem"))
    heartbeat = Looks(tmp_path / "run" / "serve.json", []).heartbeat
    heartbeat.ready()
    heartbeat.write()
    with pytest.raises(ValueError, match="doors.certificate is .*both.pem"):
        restart.request_restart("serve", tmp_path)
    assert restart.newest_request_number(tmp_path) == 0


@pytest.mark.slow
def test_as_many_replicas_as_configured_or_between_two_numbers():
    from serving.app import application
    from serving.retrieval.ray_retrieval import deployments

    fixed = application(Config(serve=ServeConfig(replicas=3)))._bound_deployment
    assert fixed.num_replicas == 3 and "runtime_env" not in fixed.ray_actor_options
    hooked = Config(serve=ServeConfig(retrieval_shards=1))
    for its in (application(hooked, True)._bound_deployment, *deployments(hooked, "", True)):
        options = getattr(its, "_bound_deployment", its).ray_actor_options
        assert options["runtime_env"] == {"env_vars": {STARTING: STARTS}}
    many = ServeConfig(min_replicas=2, max_replicas=5, target_ongoing=4.0, downscale_s=9.0)
    scaled = application(Config(serve=many))._bound_deployment._deployment_config
    its = scaled.autoscaling_config
    assert (its.min_replicas, its.max_replicas, its.target_ongoing_requests) == (2, 5, 4.0)
    assert (its.upscale_delay_s, its.downscale_delay_s) == (5.0, 9.0)
    # Slow clients must not take the places of others before their requests are read.
    most = Config().doors.connections + 2 * many.max_ongoing + EVENT_CALLS
    assert scaled.max_ongoing_requests >= most
    with pytest.raises(ValueError, match="serve.max_replicas is 1"):
        ServeConfig(min_replicas=2, max_replicas=1)
    with pytest.raises(ValueError, match="serve.downscale_s is -1"):
        ServeConfig(downscale_s=-1.0)


def test_it_is_ready_once_a_list_is_answered(tmp_path: Path, monkeypatch) -> None:
    import httpx

    given = {"/readyz": (200, ""), "/v1/inspect/users/0": (200, "{}")}
    monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(given[url][0], text=given[url][1]))
    assert answers("", str(tmp_path))
    given["/v1/inspect/users/0"] = (500, "")
    assert not answers("", str(tmp_path))
    given["/v1/inspect/users/0"] = (503, '{"error":"the session store doesn\'t answer"}')
    assert answers("", str(tmp_path))
    given["/readyz"] = (503, '{"catching_up":{"sessions":{"behind":90000}}}')
    assert answers("", str(tmp_path)), "it answers, and says what is behind"
    given["/readyz"] = (503, '{"catching_up":{}}')
    assert not answers("", str(tmp_path))
    given["/readyz"] = (503, "no JSON, from a proxy")
    assert not answers("", str(tmp_path))

"""The files that deploy the system: by Ray's own schema where it has one, and the fields that matter."""

import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.config.loader import load as settings
from recsys.config.system_config import cluster
from runtime.cli.main import COMMANDS, load
from runtime.supervision import run_file
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
KUBERAY = sorted((DEPLOY / "kuberay").glob("*.yaml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def texts(node: Any) -> list[str]:
    """All texts in a document."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        joined = [" ".join(node)] if node and all(isinstance(n, str) for n in node) else []
        return joined + [text for value in node for text in texts(value)]
    return [node] if isinstance(node, str) else []


def commands(path: Path) -> list[list[str]]:
    """The words after ``recsys`` of all command lines in a file."""
    found = []
    for text in texts(read(path)):
        for part in text.replace("&&", "\n").splitlines():
            words = shlex.split(part.replace("$(date -u +%Y-%m-%dT00:00)", "TIME"))
            names = [n for n, w in enumerate(words) if w.rpartition("/")[2] == "recsys"]
            if names and words[names[0] + 1 :] and words[names[0] + 1] in COMMANDS:
                own = words[names[0] + 1 :]  # `recsys node` ends at the dashes, where Ray's command begins
                found.append(own[: own.index("--")] if "--" in own else own)
    return found


def variables(path: Path) -> dict[str, str]:
    """The RECSYS__ variables of a file."""
    found: dict[str, str] = {}

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if str(node.get("name", "")).startswith("RECSYS__"):
                found[node["name"]] = str(node["value"])
            found.update({k: str(v) for k, v in node.items() if str(k).startswith("RECSYS__")})
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)
        elif isinstance(node, str) and "RECSYS__" in node:
            words = [word.partition("=") for word in node.split() if word.startswith("RECSYS__")]
            found.update({name: value for name, equals, value in words if equals})

    look(read(path))
    return found


ALL = [ROOT / "ray_cluster.yaml", DEPLOY / "compose.yaml", *KUBERAY]
each = pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)


def test_the_launcher_file_fits_rays_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.submodule_search_locations
    schema = Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    its = read(ROOT / "ray_cluster.yaml")
    jsonschema.validate(its, json.loads(schema.read_text()))
    assert its["head_node_type"] in its["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(its | {"no_such_key": 1}, json.loads(schema.read_text()))


@each
def test_every_command_line_exists_in_the_cli(path: Path) -> None:
    for words in commands(path):
        command = load(COMMANDS[words[0]][0], words[0])
        known = {option for its in command.params for option in its.opts}
        used = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert used <= known, words


@each
def test_what_it_sets_starts_a_cluster_by_url(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its = variables(path)
    if not its:
        assert "offline" in path.read_text()
        return
    for name, value in its.items():
        monkeypatch.setenv(name, value)
    config = settings("cluster")
    assert config.log.url == its["RECSYS__LOG__URL"] != cluster().log.url
    assert config.sessions.url == its["RECSYS__SESSIONS__URL"]
    assert config.state.startswith("/mnt/recsys")


def test_a_cluster_without_urls_that_all_nodes_reach_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("RECSYS__NODES", "2")
    monkeypatch.setenv("RECSYS__LOG__URL", "sqlite")
    with pytest.raises(ValueError, match="kafka://"):
        settings("cluster")


def test_the_job_and_the_nightly_job_are_one() -> None:
    job, nightly = read(DEPLOY / "kuberay/ray_job.yaml"), read(DEPLOY / "kuberay/ray_cron_job.yaml")
    assert (job["kind"], nightly["kind"]) == ("RayJob", "RayCronJob")
    assert job["spec"] == nightly["spec"]["jobTemplate"]
    (words,) = commands(DEPLOY / "kuberay/ray_job.yaml")
    assert words[0] == "offline" and {"--data", "--until", "--registry"} <= set(words)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_files_name_the_ray_that_is_locked(path: Path) -> None:
    its = read(path)
    assert its["apiVersion"] == "ray.io/v1" and its["metadata"]["name"].startswith("recsys")
    locked = [
        line
        for line in (ROOT / "requirements" / "run.lock").read_text().splitlines()
        if line.startswith("ray")
    ]
    (version,) = {line.partition("==")[2].partition(" ")[0] for line in locked if line.startswith("ray=") or
                  line.startswith("ray[")}  # fmt: skip
    assert f'rayVersion: "{version}"' in path.read_text()


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_pods_may_write_their_volumes_as_the_image_user(path: Path) -> None:
    (user,) = re.findall(r"useradd --uid (\d+)", (DEPLOY / "Dockerfile").read_text())

    def templates(node: Any) -> list[Any]:
        values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        own = [node["template"]] if isinstance(node, dict) and "template" in node else []
        return own + [template for value in values for template in templates(value)]

    pods = templates(read(path))
    assert len(pods) == 2
    assert all(pod["spec"]["securityContext"] == {"fsGroup": int(user)} for pod in pods)


def test_the_service_names_an_application_that_is_there() -> None:
    its = yaml.safe_load(read(DEPLOY / "kuberay/ray_service.yaml")["spec"]["serveConfigV2"])
    (application,) = its["applications"]
    module, _, name = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {name}(" in source and application["args"] == {"config": "cluster"}


def test_compose_runs_what_the_image_has() -> None:
    services = read(DEPLOY / "compose.yaml")["services"]
    assert set(services) == {"kafka", "redis", "system", "offline"}
    assert (
        DEPLOY / services["system"]["build"]["context"] / services["system"]["build"]["dockerfile"]
    ).exists()
    assert services["system"]["image"] == services["offline"]["image"]
    assert services["system"]["ports"] == ["127.0.0.1:8000:8000"], "loopback until told otherwise"
    assert services["system"]["healthcheck"]["test"][:3] == ["CMD", "python", "-c"]
    assert "healthcheck" not in services["offline"]  # it serves nothing
    assert "HEALTHCHECK" not in (DEPLOY / "Dockerfile").read_text()


def test_compose_keeps_what_services_write_starts_them_again_and_gives_them_time_to_end() -> None:
    services = read(DEPLOY / "compose.yaml")["services"]
    places = {name: service["volumes"][0].partition(":")[2] for name, service in services.items()}
    assert services["kafka"]["environment"]["KAFKA_LOG_DIRS"] == places["kafka"]
    assert services["redis"]["command"][1:] == ["--appendonly", "yes"] and places["redis"] == "/data"
    assert Path(services["system"]["environment"]["RECSYS__STATE"]).is_relative_to(places["system"])
    assert {n for n in services if services[n].get("restart") == "unless-stopped"} == set(services) - {
        "offline"
    }
    grace_s = inspect.signature(run_file.stop).parameters["grace_s"].default
    assert services["system"]["stop_grace_period"] == f"{grace_s:g}s"
    head = read(DEPLOY / "kuberay" / "ray_cluster.yaml")["spec"]["headGroupSpec"]["template"]
    assert head["spec"]["terminationGracePeriodSeconds"] == grace_s


def test_the_image_has_compiled_modules_and_a_user_that_kubernetes_can_compare() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (user,) = re.findall(r"useradd --uid (\d+)", text)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == [user]
    assert "NO_COMPILE" not in text, "this user can't write them beside their sources"

"""`recsys keys` on the log of a stopped system."""

import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from recsys.clock import machine_ms
from recsys.process.open_log import create_topics, open_log
from runtime.cli.main import app
from runtime.jobs.key_requests import read_keys
from runtime.supervision import launch_plan
from serving.access.caller import Denied
from serving.access.keyring import Keyring
from tests.support.plan_config import config_in


@pytest.fixture
def state(tmp_path: Path) -> Path:
    config, plan = launch_plan.resolve(config_in(tmp_path))
    launch_plan.write(config, plan)
    with closing(open_log(config)) as log:
        create_topics(log, config)
    return Path(config.state)


def keys(*arguments: str, state: Path) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments, "--state", str(state)])


def ring(state: Path) -> Keyring:
    keyring = Keyring()
    with launch_plan.open_system(state) as (_, log):
        for key in read_keys(log):
            keyring.fold(key)
    return keyring


def test_a_key_is_shown_once_works_and_is_revoked(state: Path) -> None:
    made = keys("add", "shop", "--scope", "events", "--scope", "attribute", "--rate", "5", state=state)
    text = made.stdout.strip()
    assert re.fullmatch(r"rk_[a-z0-9]{8}_[\w-]{43}", text), made.output
    found = ring(state).check(text, machine_ms())
    assert (found.name, found.scopes, found.rate) == ("shop", ["attribute", "events"], 5.0)
    listed = json.loads(keys("list", "--json", "-", state=state).stdout)
    assert [(row["id"], row["state"]) for row in listed] == [(found.id, "valid")]
    assert text.split("_", 2)[2] not in keys("list", state=state).stdout
    assert f"{found.id} (shop) is revoked" in keys("revoke", "shop", state=state).stdout
    with pytest.raises(Denied, match="is revoked"):
        ring(state).check(text, machine_ms())
    again = keys("revoke", "shop", state=state)
    assert again.exit_code == 2 and "no id or name of a valid key" in again.stderr


def test_wrong_options_are_named(state: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    for arguments, said in (
        (("--scope", "everything"), "--scope is everything"),
        (("--daily", "-1"), "--daily is -1"),
        (("--user-key", str(tmp_path / "key.pem")), "PEM"),
        (("--user-key", str(tmp_path / "none.pem")), "none.pem"),
    ):
        refused = keys("add", "x", *arguments, state=state)
        assert refused.exit_code == 2 and said in refused.stderr, refused.output
    assert ring(state).keys() == []


def test_rotation_keeps_the_secret_before(state: Path) -> None:
    file = state / "run" / "token.keys"
    first = file.read_text().split()
    assert keys("rotate-tokens", state=state).exit_code == 0
    second = file.read_text().split()
    assert second[1:] == first and file.stat().st_mode & 0o777 == 0o600
    keys("rotate-tokens", state=state)
    assert file.read_text().split()[1:] == second[:1]


def test_the_trail_of_all_replicas_is_merged_by_time(state: Path) -> None:
    for name, time_ms in (("audit-b.log", 2_000), ("audit-a.log", 1_000), ("audit-a.log.1", 0)):
        line = {"time_ms": time_ms, "key": "admin", "path": f"/v1/{name}", "status": 202}
        (state / "run" / name).write_text(json.dumps(line) + "\n{cut off")
    said = keys("audit", "--since", "1000", state=state).stdout.splitlines()
    assert said == [
        '1970-01-01 00:00:01  key="admin" path="/v1/audit-a.log" status=202',
        '1970-01-01 00:00:02  key="admin" path="/v1/audit-b.log" status=202',
    ]


def test_the_private_key_of_a_pair_does_not_reach_the_log(state: Path, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (pair := tmp_path / "pair.pem").write_bytes(public + secret)
    made = keys("add", "app", "--user-key", str(pair), state=state)
    assert made.exit_code == 0, made.output
    assert [key.user_keys for key in ring(state).keys()] == [[public.decode()]]

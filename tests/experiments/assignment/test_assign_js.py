"""The browser's assignment is the server's: the same arm for any user, whatever the id is made of."""

import json
import shutil
import subprocess
from dataclasses import asdict

import pytest

from experiments.assignment.definition import Arm, Experiment
from experiments.assignment.policy import assign
from recsys.events.hashing import uniform
from tests.support.pages.webdriver import Browser, chromium_is_there
from tests.support.paths import ROOT

pytestmark = pytest.mark.pairs(3)

SCRIPT = ROOT / "clients" / "javascript" / "assign.js"
NODE = shutil.which("node")
in_node_js = pytest.mark.skipif(NODE is None, reason="node isn't installed")
SIZES = (15, 16, 17, 250)  # around the hash's block
ANY: list[str | int] = ["", "a", "u-1", "ä€𝄞", *("x" * n for n in SIZES), 0, -7, 2**53 - 1, "007"]
EXPERIMENTS = (
    Experiment("even", (Arm("a", 0.5), Arm("b", 0.5))),
    Experiment("third", (Arm("a", 1 / 3), Arm("b", 1 / 3), Arm("c", 1 / 3)), salt="s", layer="mixing"),
    Experiment("few", (Arm("a", 0.9), Arm("b", 0.1)), traffic=0.1, offset=0.85),
)


def in_node(code: str, given: object) -> object:
    assert NODE is not None
    whole = f"import * as its from {json.dumps(SCRIPT.as_uri())};\nconst given = {json.dumps(given)};\n{code}"
    words = [NODE, "--input-type=module", "-"]
    done = subprocess.run(words, input=whole, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@in_node_js
def test_draws_are_equal_to_the_last_bit() -> None:
    found = in_node(
        "console.log(JSON.stringify(given.map((id) => its.uniform('layer', 'ranking', id))))", ANY
    )
    assert found == [uniform(0, "layer", "ranking", id_) for id_ in ANY]


@in_node_js
def test_arms_are_the_same() -> None:
    users, expected = assigned(3_000)
    given = {"users": users, "experiments": [asdict(its) for its in EXPERIMENTS]}
    found = in_node(
        "const arms = (e) => given.users.map((user) => its.assign(user, e));\n"
        "console.log(JSON.stringify(given.experiments.map(arms)))",
        given,
    )
    assert found == expected
    assert {"a", "b", "c"} == set(expected[1]) and None in expected[2]


@pytest.mark.services
@pytest.mark.skipif(not chromium_is_there(), reason="chromium and chromedriver aren't installed")
def test_arms_are_the_same_in_a_browser() -> None:
    users, expected = assigned(200)
    with Browser() as browser:
        browser.open("about:blank")
        found = browser.run(
            "const [users, experiments, script] = arguments;\n"
            "return import('data:text/javascript,' + encodeURIComponent(script)).then((its) =>"
            " experiments.map((e) => users.map((user) => its.assign(user, e))));",
            users,
            [asdict(its) for its in EXPERIMENTS],
            SCRIPT.read_text("utf-8"),
        )
    assert found == expected


def assigned(count: int) -> tuple[list[str | int], list[list[str | None]]]:
    """Users, and their arm in each experiment as the server gives it."""
    users = [*ANY, *(f"user-{n}" for n in range(count)), *range(count // 3)]
    arms = [[assign(user, its) for user in users] for its in EXPERIMENTS]
    return users, [[arm.name if arm else None for arm in of_one] for of_one in arms]

"""``recsys demo --promotion``: the life of a candidate on a running system, narrated.

The commands are those of an operator, and the director decides by evidence as ever. Only the settings are
made for a demo: wide margins, few examples, half of the users for the canary.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from examples.short_video.demo_system import NotReady
from experiments.evidence.verdict import CANARY
from experiments.promotion.kinds.candidate import TAKING_OVER
from experiments.promotion.kinds.line_state import ENDED, LIVE, SHADOW
from recsys.config.system_config import Config
from recsys.process.clock_file import clock_of
from recsys.process.open_log import open_log
from runtime.reports.candidate_table import CandidateView
from runtime.supervision.system_status import server_status
from training.candidates.registry import Registry

VIEWERS: Final = 4.0  # lists per second
# For the simulated world (demo_data.py), whose people the viewers are: nothing drifts. Live learns the past
# in a few large steps, so a candidate that has taken many small ones has an advantage that shows in minutes.
SETTINGS: Final[dict[str, Any]] = {
    "step.examples": 2_048,
    "step.every_ms": 5_000,
    "step.soonest_ms": 5_000,
    "step.snapshot_every": 4,  # the gates compare a candidate with live's newest snapshot
    "step.snapshot_s": 0,
    "promotion.share": 1.0,
    "promotion.block_examples": 32,
    "promotion.recall_examples": 50,
    "promotion.least_examples": 1_000,
    "promotion.auc_margin": 0.15,
    "promotion.loss_margin": 0.05,
    "promotion.segment_margin": 0.5,
    "promotion.recall_margin": 0.5,
    "promotion.calibration": 0.5,
    "promotion.engagement_margin": 0.5,
    "promotion.canary_share": 0.5,
    "promotion.canary_examples": 60,
    "promotion.settle_s": 5.0,
    # Live is a minute old: its table and scores are small.
    "promotion.memory": 1_000.0,
    "promotion.latency": 10.0,
    "promotion.score_shift": 5.0,
    "promotion.score_spread": 20.0,
    "promotion.concentration": 30.0,
}
_TEXT: Final = {
    SHADOW: "It is a shadow: it scores each example before it learns from it, and answers nobody.",
    CANARY: "It is a canary: it answers half of the users, and the rates of their engagements are compared.",
    TAKING_OVER: "It takes over: a new epoch of the live line begins with its weights.",
    LIVE: "It is live, and learns on. The model that it replaced learns beside it, as a guard.",
}
_POLL_S: Final = 2.0
_SAY_EVERY_S: Final = 15.0
_DECIDED_S: Final = 480.0
_LIVE_S: Final = 20.0  # that it answers before it is taken back


def narrate(config: Config, console: Console) -> None:
    """Trains, proposes and rolls back a candidate, and says what happens. Raises NotReady where it isn't
    promoted."""
    state, began = config.state, time.monotonic()

    def heading(text: str) -> None:
        passed_s = int(time.monotonic() - began)
        console.print(f"\n{passed_s // 60}:{passed_s % 60:02}  {text}", style="bold", highlight=False)

    heading("An offline job trains a candidate from the archive, several times over the examples.")
    _run(console, "offline", "--state", state, "--workers", "0")
    registry = Registry(Path(state) / "registry")
    name = max(registry.names(), key=lambda name: registry.provenance(name).made_ms)
    heading(f"{name} is proposed to the running system.")
    _run(console, "propose", name, "--state", state)
    _follow(config, name, heading, console)
    before = answering(config)
    console.print(f"answers come from {before}", highlight=False)
    time.sleep(_LIVE_S)
    console.print(f"{_LIVE_S:.0f} s later from {answering(config)}: it learns", highlight=False)
    heading("An operator takes it back.")
    _run(console, "rollback", "--reason", "the demo shows it", "--state", state)
    heading(f"Answers come from {answering(config)}. The life of a candidate ends here; the system goes on.")


def answering(config: Config) -> str:
    """Version that answers: line/epoch/step."""
    version = (server_status(config) or {}).get("version") or {}
    return "/".join(str(version.get(part, "–")) for part in ("line", "epoch", "step"))


def _follow(config: Config, name: str, heading: Any, console: Console) -> None:
    """Says each change of the candidate's stage, and now and then its evidence, until it is live."""
    stage, said_s, until_s = "", 0.0, time.monotonic() + _DECIDED_S
    log = open_log(config)
    try:
        view = CandidateView(log, config, clock_of(config))
        while stage != LIVE:
            rows = [row for row in view.turn() if row["line"] == name]
            row = rows[0] if rows else {"stage": ""}
            if row["stage"] != stage and row["stage"] in _TEXT:
                stage = row["stage"]
                heading(_TEXT[stage])
            if row["stage"] == ENDED or time.monotonic() > until_s:
                raise NotReady(f"{name} wasn't promoted: {row.get('why', 'nobody judged it')}")
            if rows and time.monotonic() - said_s > _SAY_EVERY_S:
                said_s = time.monotonic()
                console.print(view.table(rows))
            time.sleep(_POLL_S)
    finally:
        log.close()


def _run(console: Console, *arguments: str) -> None:
    """Runs a command of `recsys`, as an operator would; raises NotReady where it fails."""
    console.print(f"$ recsys {' '.join(arguments)}", highlight=False, soft_wrap=True)
    command = [str(Path(sys.executable).with_name("recsys")), *arguments]
    if status := subprocess.run(command).returncode:
        raise NotReady(f"`recsys {arguments[0]}` ended with status {status}")

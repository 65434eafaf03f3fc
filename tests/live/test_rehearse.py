"""``recsys rehearse`` on small tables: all parts run over HTTP at the tables' time, and both are judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.pairs(16)]

START_S, ROWS = 1_600_000_000, 120
APP = """
app: tiny
events: {click: positive}
fields: {item: {genre: category}}
shown: clicks
repeats: true
window: 60s
features: {half_lives: [1h, 24h], rates: [all, item, user×genre], near: true}
files:
  interactions: {files: [log.csv], user: u, item: i, time: t, unit: s, kind: k}
  items: {files: [items.csv], id: i, fields: {genre: genre}}
"""


def test_a_log_is_rehearsed_over_http_at_its_own_time(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text(APP)
    rows = (f"u{n % 8},{n % 8 + 8 * (n * 7 % 3)},click,{START_S + 20 * n}" for n in range(600 + ROWS))
    (tmp_path / "log.csv").write_text("\n".join(["u,i,k,t", *rows]))
    items = "".join(f"{i},g{i % 8}\n" for i in range(24))
    (tmp_path / "items.csv").write_text("i,genre\n" + items)
    command = [str(Path(sys.executable).with_name("recsys")), "rehearse", "--app", "app.yaml"]
    options = ["--rows", str(ROWS), "--learn", "600", "--read", "0.5", "--state", "state"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "rehearsal.json").read_text())
    live = report["live"]
    assert (live["rows"], live["refused"], live["unsettled"]) == (ROWS, 0, 0)
    assert live["lists"] == ROWS and 30 < live["lists that were only read"] < 90
    assert live["version"]["step"] > 0 and 0 < report["speed"]["reached"] <= 2_000
    judged = [q for q, each in report["questions"].items() if each["cases"] >= 50]
    assert judged
    for question in judged:
        ours, other = (each["questions"][question]["ours"] for each in (report, report["replay"]))
        assert min(ours["hit@10"], other["hit@10"]) > 0.5  # by chance 10 of 24
    assert "tiny, rehearsed" in (tmp_path / "rehearsal.html").read_text()
    assert "times as fast as the machine's" in done.stdout
    again = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and "state isn't empty" in again.stderr.replace("\n", " ")

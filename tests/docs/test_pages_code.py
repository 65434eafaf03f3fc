"""The Python of pages that stand by themselves is run as it stands there, and the notebooks are whole."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from recsys.app.app_file import app_of
from recsys.events.event_types import Event
from tests.support.paths import ROOT
from tests.support.training.small_feed import append_events, feed, toy_log
from training.archive.writer import Archive

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def code_in(text: str) -> str:
    """All Python blocks of a page, in order."""
    return "\n".join(textwrap.dedent(block) for _, block in BLOCK.findall(text))


def test_the_features_page_runs_as_it_stands() -> None:
    page = (DOCS / "how-to" / "features.md").read_text()
    code = code_in(page)
    assert code.count("assert") == 4
    exec(compile(code, "features.md", "exec"), {})
    app = app_of(page.partition("```yaml\n")[2].partition("```")[0])
    names = app.feature_set().dense_names
    assert {"profile×item/click.1h", "item.age", "list.rank(item/click.24h)"} <= set(names)


def test_a_user_gets_a_copy_of_everything_that_they_sent(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    page = (DOCS / "how-to" / "operations.md").read_text()
    exec(compile(code_in(page), "operations.md", "exec"), names)
    log, events = toy_log(), feed(60)
    append_events(log, events)
    archive = Archive(log, tmp_path / "archive", lambda: 0)
    while archive.turn():
        pass
    archive.flush()
    sent = [event for event in events if getattr(event, "user_id", None) == "u3"]
    copy = [msgspec.json.decode(line, type=Event) for line in names["copy_of"]("u3", tmp_path)]
    assert len(sent) > 10 and copy == sent


def test_blocks_within_lists_are_found_too() -> None:
    text = "```python\na = 1\n```\n1. x\n   ```python\n   b = a\n   ```\n```\nno code\n```\n"
    assert code_in(text) == "a = 1\n\nb = a\n"


@pytest.mark.parametrize(
    "path", sorted((DOCS / "tutorial" / "notebooks").glob("*.ipynb")), ids=lambda p: p.name
)
def test_a_notebook_is_kept_without_outputs_and_checks_what_it_says(path: Path) -> None:
    """`make docs` runs them: outputs in the repository would be of another machine, or of another version."""
    cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert any("assert " in "".join(cell["source"]) for cell in code)
    assert "".join(cells[0]["source"]).startswith("# ")

"""What the site adds to the pages: the sidebar, the command line, the places that links to code lead to."""

import sys
from pathlib import PurePosixPath

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))
try:
    import cli_reference
    import navigation
    import source_links
finally:
    sys.path.pop(0)

DOCS = PurePosixPath("docs")


def test_the_sidebar_has_the_sections_that_are_lists_of_links() -> None:
    one, two = "## One\n\n- [A](a.md): why\n- [B](../B.md)\n", "## Two\n\n- [C](n/c.ipynb)\n"
    text = f"# T\n\n{one}\n## Words\n\nnone\n\n{two}"
    assert navigation.sections_of(text) == [
        ("One", [("A", "a.md"), ("B", "../B.md")]),
        ("Two", [("C", "n/c.ipynb")]),
    ]
    assert ":caption: One\n\nA <a>\nB <../B>\n" in navigation.toctrees_of(text)


def test_every_command_has_its_options_and_what_they_default_to() -> None:
    text = cli_reference.markdown()
    assert "## recsys up\n" in text and "## recsys experiment start\n" in text
    assert "| `--state <path>` |" in text and "[default: laptop]" in text
    assert text.count("## recsys ") == len(list(cli_reference.commands())) > 25


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [
        ("../recsys/events/event_types.py", "generated/python/recsys.md#eventsevent_types"),
        ("../training/joining/joiner.py", "generated/python/training.md#joiningjoiner"),
        ("../runtime/cli/up.py", "generated/source/runtime.cli.up.md"),
        ("../deploy/kuberay/", "generated/source/deploy-kuberay.md"),
        ("../experiments/configs/default.yaml", "generated/source/experiments-configs-default-yaml.md"),
        ("../clients/typescript/README.md", "generated/source/clients-typescript-README-md.md"),
        ("../ARCHITECTURE.md#parts", "../ARCHITECTURE.md#parts"),
        ("api.md", "api.md"),
        ("https://x.org/a.py", "https://x.org/a.py"),
        ("loop.svg", "loop.svg"),
    ],
)
def test_links_to_code_are_turned_and_others_stay(link: str, leads_to: str) -> None:
    assert source_links.turned(f"see [it]({link}).", DOCS) == f"see [it]({leads_to})."

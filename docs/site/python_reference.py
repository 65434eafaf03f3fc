"""A page for each package: its public modules, those that one builds with or reads to know what happens.

The pages are written into docs/generated/ before anything is read, and hold no word of their own: autodoc
reads the docstrings. Modules that aren't named here are inner ones: links to them are given the source.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "<!-- modules -->"
PAGES = "docs/generated/python"
PUBLIC = {
    "recsys": """events records log hashing schema features feature_builder session counters catalogue
        batch ranker vectors model student_model metrics world config policy_config
        promotion_config drift_config feature_sets blueprint open_log sqlite_log kafka_log client""",
    "parameter_server": "rows id_map lanes routing shard rules rounding published deltas wal snapshots",
    "experiments": """definition assignment policy design metric effect sample_ratio power readout ramp
        comparison gates promotion guard lifecycle""",
    "training": """line joining.joiner joining.delay joining.sampling continual.sequencer continual.learner
        continual.local_line continual.forgetting offline.examples offline.vocabulary
        offline.loop merging.refit merging.merge drift.monitors drift.baseline
        drift.reaction""",
    "serving": """request pipeline stages filters retrieval scoring selection replica item_index ingest
        session_fold session_store service""",
}


def modules() -> set[str]:
    """The public modules by their dotted names."""
    return {f"{package}.{name}" for package, names in PUBLIC.items() for name in names.split()}


def files() -> dict[str, str]:
    """The text of each page, by its path from the root."""
    return {
        f"{PAGES}/{package}.md": _page(package, names.split()) for package, names in PUBLIC.items()
    }


def index() -> str:
    """What stands in docs/python.md instead of the mark."""
    entries = "\n".join(f"generated/python/{name}" for name in PUBLIC)
    return f"```{{toctree}}\n:maxdepth: 2\n\n{entries}\n```\n"


def write(wanted: dict[str, str], folder: Path) -> None:
    """Makes a folder hold these pages and no others; one that is as it should be keeps its time."""
    for old in folder.rglob("*.md"):
        if str(old.relative_to(ROOT)) not in wanted:
            old.unlink()
    for path, text in wanted.items():
        file = ROOT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def literal_blocks(lines: list[str]) -> list[str]:
    """A docstring in which indented blocks and tables are literal: ours align columns by spaces or bars, and
    reStructuredText wouldn't."""
    found: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        begins = not number or not lines[number - 1].strip()
        aligned = line.startswith(("    ", "|")) and not line.lstrip().startswith((">>>", ".. "))
        if begins and aligned and not inside and not any(one.endswith("::") for one in found[-2:]):
            found += ["::", ""]
            inside = True
        elif begins and line.strip() and not aligned:
            inside = False
        found.append("    " + line if inside and line.strip() else line)
    return found


def _page(package: str, names: list[str]) -> str:
    head = f"# {package}\n\n{_automodule(package, ':no-index:')}"
    return head + "".join(f"\n## {name}\n\n{_automodule(f'{package}.{name}')}" for name in names)


def _automodule(name: str, option: str = ":members:") -> str:
    return f"```{{eval-rst}}\n.. automodule:: {name}\n   {option}\n```\n"


def setup(app):
    write(files(), ROOT / PAGES)

    def add(app, docname, source):
        if docname == "docs/python":
            source[0] = source[0].replace(MARK, index())

    def literal(app, what, name, obj, options, lines):
        lines[:] = literal_blocks(lines)

    app.connect("source-read", add)
    app.connect("autodoc-process-docstring", literal)
    return {"parallel_read_safe": True}

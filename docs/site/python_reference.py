"""Writes a reference page for each package from the docstrings of its public modules.

The pages are written into docs/generated/ before Sphinx reads anything. Other modules are internal; links to
them lead to a page with their source.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "<!-- modules -->"
PAGES = "docs/generated/python"
PUBLIC = {
    "recsys": """events.event_types events.records log.protocol events.hashing events.field_schema
        features.feature_set features.feature_builder features.session features.counters
        features.catalogue model.batch model.ranker model.retrieval_vectors model.model
        model.student_model model.prediction_metrics config.system_config
        config.policy_config config.promotion_config config.part_configs
        features.feature_set_file process.open_log log.sqlite_log log.kafka_log client plugins""",
    "parameter_server": """table.table shard.lanes table.routing shard.shard shard.wal_settings
        publish.rounding publish.published publish.deltas storage.wal storage.snapshots""",
    "experiments": """assignment.definition assignment.policy assignment.design
        statistics.effect statistics.sample_ratio
        statistics.readout statistics.revision statistics.comparison evidence.gates
        evidence.verdict promotion.lifecycle promotion.kinds.line_state
        promotion.kinds.candidate promotion.kinds.guard promotion.kinds.arm promotion.kinds.features""",
    "training": """lines.line joining.joiner joining.delay joining.sampling steps.sequencer
        continual.learner offline.examples offline.vocabulary offline.loop merging.merge
        drift.monitors drift.baseline""",
    "serving": """request pipeline filters.filter scorers.scorer selection.selector sources.source
        sources.retrieval scorers.probabilities selection.sampling replica.replica index.item_index
        ingestion.event_validation sessions.session_fold sessions.session_store service http.added_routes""",
    "plugins": "experiment_power.sequential_power",
    "examples": "short_video.world",
}


def modules() -> set[str]:
    """The public modules by their dotted names."""
    return {f"{package}.{name}" for package, names in PUBLIC.items() for name in names.split()}


def files() -> dict[str, str]:
    """The text of each page, by its path from the root."""
    return {f"{PAGES}/{package}.md": _page(package, names.split()) for package, names in PUBLIC.items()}


def index() -> str:
    """Table of contents that replaces the mark in docs/reference/python.md."""
    entries = "\n".join(f"../generated/python/{name}" for name in PUBLIC)
    return f"```{{toctree}}\n:maxdepth: 2\n\n{entries}\n```\n"


def write(wanted: dict[str, str], folder: Path) -> None:
    """Makes a folder hold exactly these pages; an unchanged one keeps its modification time."""
    for old in folder.rglob("*.md"):
        if str(old.relative_to(ROOT)) not in wanted:
            old.unlink()
    for path, text in wanted.items():
        file = ROOT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def literal_blocks(lines: list[str]) -> list[str]:
    """Makes indented blocks and tables of a docstring literal: they align columns by spaces or bars."""
    out: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        begins = not number or not lines[number - 1].strip()
        aligned = line.startswith(("    ", "|")) and not line.lstrip().startswith((">>>", ".. "))
        if begins and aligned and not inside and not any(one.endswith("::") for one in out[-2:]):
            out += ["::", ""]
            inside = True
        elif begins and line.strip() and not aligned:
            inside = False
        out.append("    " + line if inside and line.strip() else line)
    return out


def _page(package: str, names: list[str]) -> str:
    head = f"# {package}\n\n{_automodule(package, ':no-index:')}"
    return head + "".join(f"\n## {name}\n\n{_automodule(f'{package}.{name}')}" for name in names)


def _automodule(name: str, option: str = ":members:") -> str:
    return f"```{{eval-rst}}\n.. automodule:: {name}\n   {option}\n```\n"


def setup(app):
    write(files(), ROOT / PAGES)

    def add(app, docname, source):
        if docname == "docs/reference/python":
            source[0] = source[0].replace(MARK, index())

    def literal(app, what, name, obj, options, lines):
        lines[:] = literal_blocks(lines)

    app.connect("source-read", add)
    app.connect("autodoc-process-docstring", literal)
    return {"parallel_read_safe": True}

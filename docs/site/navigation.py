"""Builds the sidebar from the link lists of docs/index.md and docs/decisions/index.md.

Both stay plain Markdown: a section with a list of links becomes a section of the sidebar. A page that no list
names fails the build.
"""

import re
from pathlib import PurePosixPath

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_LINK = re.compile(r"^- \[([^\]]+)\]\(([^)#\s]+)\)", re.MULTILINE)


def sections_of(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(title, path)]) of those sections of a page that are lists of links."""
    _, *parts = _SECTION.split(text)
    sections = [(head, _LINK.findall(body)) for head, body in zip(parts[::2], parts[1::2], strict=True)]
    return [(head, links) for head, links in sections if links]


def toctrees_of(text: str) -> str:
    """The same as hidden tables of contents, as MyST writes them."""
    blocks = []
    for head, links in sections_of(text):
        entries = "\n".join(f"{title} <{_document(path)}>" for title, path in links)
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {head}\n\n{entries}\n```\n")
    return "\n".join(blocks)


def _document(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def setup(app):
    def add(app, docname, source):
        if docname in (app.config.root_doc, "docs/decisions/index"):
            source[0] += "\n" + toctrees_of(source[0])

    app.connect("source-read", add, priority=900)  # after links are turned
    return {"parallel_read_safe": True}

"""The sidebar, from the lists of docs/index.md: a section of the page is a section of the sidebar.

So the page is plain Markdown, and what is linked in it under a heading is what the site has. A page of docs/
that no list names ends the build, which takes it for one that nobody finds.
"""

import re
from pathlib import PurePosixPath

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_LINK = re.compile(r"^- \[([^\]]+)\]\(([^)#\s]+)\)", re.MULTILINE)


def sections_of(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(title, path)]) of those sections of a page that are lists of links."""
    _, *parts = _SECTION.split(text)
    found = [
        (head, _LINK.findall(body)) for head, body in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [(head, links) for head, links in found if links]


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
        if docname == app.config.root_doc:
            source[0] += "\n" + toctrees_of(source[0])

    app.connect("source-read", add, priority=900)  # after links are turned
    return {"parallel_read_safe": True}

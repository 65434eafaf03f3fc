"""Rewrites links from pages to code: to the module's place in the reference, else to a page with its source.

In the repository a link like ``../recsys/events/event_types.py`` leads to the file, which the site lacks.
"""

import os
import re
from pathlib import PurePosixPath

from python_reference import PAGES, ROOT, modules, write

SOURCES = "docs/generated/source"
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)((?:#[^)\s]*)?)(?=\))")
_LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".json": "json",
    ".js": "javascript",
    ".toml": "toml",
    ".md": "markdown",
}
_ASSETS = {".md", ".ipynb", ".svg", ".png"}


def target_of(link: str, folder: PurePosixPath) -> str | None:
    """Path from the root of the code that a page in ``folder`` links to; None for other links."""
    if re.match(r"[a-z]+:", link):
        return None
    path = os.path.normpath(folder / link)
    target = ROOT / path
    is_page = target.suffix in _ASSETS and not path.startswith("clients/")
    if path.startswith("..") or not target.exists() or is_page:
        return None
    return path


def page_of(path: str) -> str:
    """The page, from the root, that shows a file or folder of the repository."""
    dotted = path.removesuffix(".py").replace("/", ".")
    package, _, name = dotted.partition(".")
    if dotted in _PUBLIC:
        return f"{PAGES}/{package}.md#{name.replace('.', '')}"
    return f"{SOURCES}/{dotted if path.endswith('.py') else path.replace('/', '.').replace('.', '-')}.md"


def turned(text: str, folder: PurePosixPath) -> str:
    """Text of a page with its links to code rewritten."""

    def turn(link: re.Match[str]) -> str:
        path = target_of(link[1], folder)
        return link[0] if path is None else os.path.relpath(page_of(path), folder)

    return _LINK.sub(turn, text)


def source_page(path: str) -> str:
    """Page with a file's source, or with a folder's names."""
    source = ROOT / path
    title = f"---\norphan: true\n---\n\n# {path.replace('_', chr(92) + '_')}\n\n"
    if source.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in source.iterdir() if p.name[0] not in "._")
        return title + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = _LANGUAGES.get(source.suffix, "text")
    return f"{title}```{{literalinclude}} /{path}\n:language: {language}\n:linenos:\n```\n"


def linked() -> set[str]:
    """Files and folders that pages link to and that need a source page."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    pages = [page for page in pages if "generated" not in page.parts]
    paths: set[str] = set()
    for page in pages:
        folder = PurePosixPath(page.parent.relative_to(ROOT))
        targets = (target_of(link, folder) for link, _ in _LINK.findall(page.read_text()))
        paths |= {target for target in targets if target is not None}
    return {path for path in paths if page_of(path).startswith(SOURCES)}


_PUBLIC = modules()


def setup(app):
    write({page_of(path): source_page(path) for path in linked()}, ROOT / SOURCES)

    def turn(app, docname, source):
        if not docname.startswith("docs/generated/"):
            source[0] = turned(source[0], PurePosixPath(docname).parent)

    app.connect("source-read", turn, priority=100)
    return {"parallel_read_safe": True}

"""Sphinx configuration of `make docs`. Pages are read from the repository root, so links work in both."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]  # the packages and, as extensions, the modules beside this one

project = "recsys"
author = "the recsys authors"
copyright = "the recsys authors, Apache License 2.0"
html_title = "recsys"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.imgmath",
    "navigation",
    "cli_reference",
    "python_reference",
    "source_links",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**"]
# Folders that Sphinx must not scan: an environment has thousands of files.
exclude_patterns = [p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "docs"]
exclude_patterns += ["docs/site", "docs/tutorial/notebooks/.ipynb_checkpoints"]

myst_heading_anchors = 4
nb_ipywidgets_js = {}  # no scripts from elsewhere
html_math_renderer = "imgmath"  # no page has mathematics to render, and MathJax would come from a CDN
nb_execution_mode = "force"  # a notebook that fails ends the build
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False
add_module_names = False
python_use_unqualified_type_names = True

smartquotes = False  # two hyphens of an option stay two
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "to_docs.html"}  # the site's root leads to docs/
templates_path = ["templates"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

"""The site's build: `make docs`. Its root is the repository, so that a link between files works here as it does there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from sphinx.application import Sphinx  # noqa: E402

import lookup  # noqa: E402
from headrace.transforms.versions import __version__  # noqa: E402

project = "headrace"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
copybutton_prompt_text, copybutton_prompt_is_regexp = r"\$ |>>> ", True  # a prompt and what was printed are not copied
root_doc = "docs/index"
include_patterns = ["docs/**", "templates/*/README.md", "examples/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "**/__pycache__",
    "*.egg-info",
    "transforms",
    "pipeline",
    "tests",
    "benchmarks",
]
myst_heading_anchors = 3
smartquotes = False
default_role = "code"  # our docstrings are Markdown's kind: `name` is code
autodoc_inherit_docstrings = False  # what Beam asks of a transform is not ours to tell
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
html_show_copyright = False
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"headrace {version}"
html_copy_source = False
html_extra_path = ["site"]  # a first page that leads to docs/index.html


def _fill(_: Sphinx, docname: str, source: list[str]) -> None:
    """`<!-- flags -->` and its like become what the code says."""
    for name, made in lookup.MADE.items():
        if (mark := f"<!-- {name} -->\n") in source[0]:
            source[0] = source[0].replace(mark, made())
    if docname == root_doc:
        source[0] = re.sub(r"^<!-- others in (\S+) -->\n", _others, source[0], flags=re.MULTILINE)


def _others(mark: re.Match[str]) -> str:
    """The pages of a folder that the index does not name itself, so that a new page has a place."""
    pages = sorted(path.stem if mark[1] == "." else f"{mark[1]}/{path.stem}" for path in (HERE / mark[1]).glob("*.md"))
    named = {"index", *mark.string.split()}
    return "".join(f"{page}\n" for page in pages if page not in named)


def _as_rst(_: Sphinx, __: str, ___: str, ____: object, _____: object, lines: list[str]) -> None:
    """An indented example is a literal block, which reStructuredText wants announced."""
    for i in range(len(lines) - 1, 0, -1):
        example = lines[i].startswith("    ") and not lines[i - 1].strip()
        if example and not next((line for line in reversed(lines[:i]) if line.strip()), "").startswith("    "):
            lines[i:i] = ["::", ""]


def _mark_long_words(_: Sphinx, __: str, ___: str, context: dict[str, Any], ____: object) -> None:
    """Words of code that `static/site.css` may break."""
    context["body"] = re.sub(r'(?<=<span class="pre)(?=">[^<]{33})', " long", context.get("body", ""))


def setup(app: Sphinx) -> None:
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _as_rst)
    app.connect("html-page-context", _mark_long_words)

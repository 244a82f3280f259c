"""The site that `make docs` builds: no warning, no broken link, nothing fetched from elsewhere, all that the code offers."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.search.en import SearchEnglish

import headrace
from headrace.pipeline.flags.help_text import help_text
from headrace.transforms import errors
from headrace.transforms.beam import metrics
from tests.docs.test_documents import check_flags

ROOT = Path(__file__).resolve().parents[2]
FETCHED = {
    ("link", "href"),
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}


class Page(HTMLParser):
    """Anchors, links and what a browser fetches by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif (tag, name) in FETCHED and value and ("rel", "canonical") not in attrs:
                self.fetched.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


Site = dict[Path, Page]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it, from nothing."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (line,) = re.findall(r"^\t\$\(BIN\)/python -m (sphinx .*)$", makefile, re.MULTILINE)
    built = tmp_path_factory.mktemp("site")
    arguments = line.replace("build/doctrees", f"{built}/trees").replace("build/site", f"{built}/site").split()
    run = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return built / "site"


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    return {path: Page(path) for path in folder.rglob("*.html")}


def test_every_document_is_a_page(site: Site, folder: Path) -> None:
    documents = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("templates/*/README.md"), ROOT / "CONTRIBUTING.md"]
    pages = {path.relative_to(folder).with_suffix("") for path in site}
    assert {document.relative_to(ROOT).with_suffix("") for document in documents} <= pages


def test_no_link_within_the_site_is_broken(site: Site, folder: Path) -> None:
    broken = defaultdict(set)
    for path, page in site.items():
        for link in [*page.links, *page.fetched]:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            anchors = site[target].anchors if target in site else set()
            if not target.is_file() or (to.fragment and target in site and unquote(to.fragment) not in anchors):
                broken[path.relative_to(folder)].add(link)
    assert not broken


def test_the_search_finds_what_readers_look_for(folder: Path) -> None:
    index = json.loads((folder / "searchindex.js").read_text("utf-8").removeprefix("Search.setIndex(").rstrip(");"))
    found: defaultdict[str, set[str]] = defaultdict(set)
    for kind in ("terms", "titleterms"):
        for term, pages in index[kind].items():
            found[term] |= {index["docnames"][page] for page in ([pages] if isinstance(pages, int) else pages)}
    stem = SearchEnglish({}).stem
    wanted = {
        "jupyter": "notebooks",
        "threshold": "top_classes",
        "null": "nulls",
        "categories": "nulls",
        "csv": "one_file",
    }
    missed = {word for word, page in wanted.items() if f"docs/{page}" not in found[stem(word)]}
    assert not missed


def test_blocks_can_be_copied_and_flags_are_not_broken(folder: Path) -> None:
    """A browser gives each block a button; it breaks no word of code that is not marked as long."""
    page = (folder / "docs/reference/flags.html").read_text("utf-8")
    assert re.search(r'<script src="[./]*_static/copybutton\.js', page)
    assert re.search(r'<link [^>]*href="[./]*_static/site\.css', page)
    style = (folder / "_static/site.css").read_text("utf-8")
    assert "code.literal .pre { white-space: nowrap; }" in style
    assert ".pre.long {" in style
    words = re.findall(r'<span class="pre( long)?">(--[^<]*)<', page)
    assert {bool(long) for long, _ in words} == {True, False}
    assert all(bool(long) == (len(html.unescape(word)) > 32) for long, word in words if "&" not in word)


def test_links_to_elsewhere_are_addresses(site: Site) -> None:
    """Whether somebody answers there is not asked: the checks reach nothing but this machine."""
    links = {link for page in site.values() for link in page.links if urlsplit(link).scheme}
    away = {link for link in links if urlsplit(link).hostname != "localhost"}
    assert away
    assert not [link for link in away if urlsplit(link).scheme != "https" or "." not in urlsplit(link).netloc]


def test_a_reader_s_browser_asks_nobody_else(site: Site, folder: Path) -> None:
    fetched = {link for page in site.values() for link in page.fetched if re.match(r"(\w+:)?//", link)}
    styles = "".join(path.read_text("utf-8") for path in folder.rglob("*.css"))
    assert not fetched
    assert not re.findall(r"url\(['\"]?(?:\w+:)?//[^)]*|@import[^;]*//[^;]*", styles)


def test_every_flag_is_listed_with_an_anchor_and_an_example(site: Site, folder: Path) -> None:
    flags = set(re.findall(r"^ +(?:-\w, )?(--\w+)", help_text(), re.MULTILINE)) - {"--help"}
    assert flags
    page = folder / "docs/reference/flags.html"
    assert flags <= site[page].anchors
    cells = re.findall(r"<tr[^>]*><td><p>(form|default|example)</p></td>", page.read_text("utf-8"))
    assert Counter(cells) == dict.fromkeys(("form", "default", "example"), len(flags))


def test_the_examples_of_flags_are_flags() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        examples = import_module("flag_examples").EXAMPLES
    finally:
        sys.path.remove(str(ROOT / "docs"))
    for flag, example in examples.items():
        words = shlex.split(example)
        assert any(word.partition("=")[0] == f"--{flag}" for word in words)
        check_flags(words, whole=False)


def test_every_error_is_listed_with_its_fix(site: Site, folder: Path) -> None:
    text = site[folder / "docs/reference/errors.html"].text
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HeadraceError)
    ]
    assert len(kinds) > 15
    for kind in kinds:
        assert kind.__name__ in text
        if not kind.__subclasses__():
            assert "Fix: " in (kind.__doc__ or ""), f"the docstring of {kind.__name__} names no fix"


def test_every_metric_is_listed(site: Site, folder: Path) -> None:
    page = (folder / "docs/reference/metrics.html").read_text("utf-8")
    told = set(re.findall(r'<span class="pre">(\w+)</span></code>', page))
    counted = {*metrics._COUNTERS, *(metric.metric_name.name for metric in metrics._TIMES.values())}
    assert counted <= told


def test_every_public_name_is_listed(site: Site, folder: Path) -> None:
    anchors = site[folder / "docs/reference/api.html"].anchors
    assert {f"headrace.{name}" for name in headrace.__all__} <= anchors

"""Words that texts for readers avoid, with what to write instead: `python -m tests.support.plain_words`, part of `make lint`.

It reads the documents without their code, the help of each flag, and what is passed to our errors. The docstrings that the
site shows count as documents. What a word list cannot see (order, length, inversion) is left to whoever reviews.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
INSTEAD = {
    r"\b(told|tells?|telling)\b": "report, show, record",
    r"\b(lie|lies|lay|lain|stands?|stood|standing)\b": "is, exists, is already there",
    r"\b(held|holds?|holding) (\w+ ){0,3}against\b": "compare with, check against",
    r"\b(mend(s|ed|ing)?|cures?|cured)\b": "fix",
    r"(?<!there\s)\b(is|are|was|were) no (?!longer|more|less|fewer)": "is not a, lacks",
    r"\b(has|have|had) no (such|use|meaning|sense|effect|way|place|need|part|say|word|business|counterpart)\b": (
        "lacks, does nothing, cannot"
    ),
    r"\bneed (not )?be\b": "you do not need",
    r"\b(so that|of which|of whom|as where|for want of|on which)\b": "split the sentence",
    r"(?<!at\s)\bleast\b|\bdeviations?\b": "min, max, std. dev.",
    r"\bsomething else than\b": "say what it is, and what it must be",
    r"\bthe end exclusive\b": "rows 0-1",
    r"\b(anew|beside|for ever|in silence|heeds?|merely|lest|whence|hence|thereof|whereof|upon|whoever|whatever)\b": (
        "again, next to, forever, silently, only: the everyday word"
    ),
}
# A blank of a pattern is also the end of a line.
PATTERNS = [(re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE), instead) for pattern, instead in INSTEAD.items()]
DOCUMENTS = ("*.md", "docs/**/*.md", "examples/*.md", "templates/*/*.md")
# Their docstrings are pages of the site.
SHOWN = ("transforms/errors.py", "transforms/beam/metrics.py")
CODE = ("headrace", "pipeline", "transforms")
# Every text of these is help.
HELP = ("pipeline/flags/flags.py", "pipeline/flags/help_text.py")
_FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)|\]\([^)]*\)|https?://\S+|<!--.*?-->", re.DOTALL)


class Hit(NamedTuple):
    path: str
    line: int
    words: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.words!r}. Instead: {self.instead}."


def without_code(text: str) -> str:
    """As many lines, but nothing of blocks, spans and addresses."""
    for code in (_FENCED, _SPAN):
        text = code.sub(lambda found: "\n" * found[0].count("\n") or " ", text)
    return text


def hits(path: str, text: str, first_line: int = 1) -> Iterator[Hit]:
    text = without_code(text)
    for pattern, instead in PATTERNS:
        for found in pattern.finditer(text):
            yield Hit(path, first_line + text.count("\n", 0, found.start()), " ".join(found[0].split()), instead)


def error_classes() -> set[str]:
    """The names of our errors' classes, from the text of transforms/errors.py."""
    tree = ast.parse((ROOT / "transforms/errors.py").read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def literals(node: ast.AST) -> Iterator[ast.Constant]:
    """Each text in an expression, the parts of f-strings too, but no names of keys or fields (words without a blank)."""
    for found in ast.walk(node):
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield found


def error_texts(tree: ast.AST, names: set[str]) -> Iterator[ast.Constant]:
    """What is passed to an error's class, and as `cure=` to a function that makes the error."""
    seen: set[int] = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            passed = [keyword.value for keyword in call.keywords if keyword.arg in ("expected", "found", "cure")]
            for part in [*call.args, *passed] if name in names else passed:
                for text in literals(part):
                    if id(text) not in seen:
                        seen.add(id(text))
                        yield text


def help_texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every text of more than a word, since help is also passed by a variable."""
    yield from (text for text in literals(tree) if " " in str(text.value).strip())


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.value


def in_code() -> Iterator[Hit]:
    names = error_classes()
    for path in sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text("utf-8"))
        texts = [*error_texts(tree, names)]
        if name in HELP:
            texts += help_texts(tree)
        if name in SHOWN:
            texts += docstrings(tree)
        for text in texts:
            yield from hits(name, str(text.value), text.lineno)


def in_documents() -> Iterator[Hit]:
    for path in sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}):
        yield from hits(str(path.relative_to(ROOT)), path.read_text("utf-8"))


if __name__ == "__main__":
    found = [*in_documents(), *in_code()]
    print("\n".join(map(str, found)) or "Plain words: no hit.")
    sys.exit(1 if found else 0)

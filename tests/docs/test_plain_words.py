"""The word list of `make lint`: each of its patterns finds what it is for, in prose, help and errors, and nothing in code."""

from __future__ import annotations

import ast

import pytest

from tests.support.plain_words import INSTEAD, error_texts, help_texts, hits, in_code

BAD = {
    "The log tells why.": "tells",
    "The file lies in a bucket.": "lies",
    "Shards that stand are skipped.": "stand",
    "It is held against the manifest.": "held against",
    "Hold the output\nagainst it.": "Hold the output against",
    "Mend the row.": "Mend",
    "This is no row.": "is no ",
    "It has no such value.": "has no such",
    "Nothing need be said.": "need be",
    "Quote it, so that it stays.": "so that",
    "the least and the largest": "least",
    "It gives something else than a row.": "something else than",
    "rows 0 to 2, the end exclusive": "the end exclusive",
    "It is computed anew.": "anew",
}
GOOD = [
    "There is no object at this name, and it is no longer needed.",
    "At least one row has no value; the standard layer is a template.",
    "Write `error.cure`, or ``what it tells``, and see [errors](errors.md#so-that).",
    "```text\nIt stands, so that it lies.\n```",
    "See https://example.com/told.",
]


@pytest.mark.parametrize(("text", "words"), BAD.items())
def test_a_word_of_the_list_is_found(text: str, words: str) -> None:
    found = list(hits("a.md", text))
    assert [hit.words for hit in found] == [words.strip()]
    assert str(found[0]).startswith("a.md:1: ")


def test_every_pattern_has_an_example() -> None:
    assert {hit.instead for text in BAD for hit in hits("a.md", text)} == set(INSTEAD.values())


@pytest.mark.parametrize("text", GOOD)
def test_plain_text_and_code_are_left_alone(text: str) -> None:
    assert not list(hits("a.md", text))


def test_the_line_is_that_of_the_word() -> None:
    (hit,) = hits("a.md", "One.\n\n```sh\nls\n```\n\nIt `x` tells.\n")
    assert hit.line == 7


def test_error_and_help_texts_are_found_and_other_literals_are_not() -> None:
    code = """
raise DataError(f"{name} tells {what['lies']}", cure="Mend " + row)
later(cure="Mend it")
log("it lies")
helped = "what stands for it"
parser.add_argument("--x", help=helped)
"""
    tree = ast.parse(code)
    texts = [str(text.value) for text in error_texts(tree, {"DataError"})]
    assert sorted(texts) == [" tells ", "Mend ", "Mend it", "lies"]
    assert "what stands for it" in [text.value for text in help_texts(tree)]
    assert "--x" not in [text.value for text in help_texts(tree)]


def test_help_and_errors_of_this_repository_are_plain() -> None:
    assert not list(in_code())

"""Whatever an input is called, its output lies in the output folder, in plain sight, and under a name of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from unicodedata import category
from urllib.parse import unquote

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.transforms.shards.shard import output_name, parse_output_name, relative_stem
from headrace.transforms.storage import ObjectRef
from tests.support.jobs import put

FOLDER = "gs://bucket/in/"
FINGERPRINT = "0123456789abcdef" * 4
NASTY = [
    *(
        "..",
        ".",
        "...",
        "_",
        "~",
        "@",
        "%2e%2e",
        "%2E",
        "%00",
        "%2F",
        "..%2f..",
        "%",
        "con",
        "-",
        "--overwrite",
        "$(id)",
    ),
    *(
        "\\",
        "..\\..\\windows",
        "\n",
        "\r\n",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\u2024\u2024",
        "\uff0e\uff0e",
        "\u2215",
        "\u212b",
    ),
    *(
        "a\u0308",
        "ä",
        "_SUCCESS",
        "_headrace",
        ".headrace-0",
        "x" * 300,
        "漢" * 200,
        ".parquet",
        "a.parquet",
        " ",
        "'",
        '"',
        "*",
    ),
]
SEGMENTS = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/")))
MARKS = ("Mn", "Mc", "Me", "Nl", "No")  # of letters, and numbers
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)


def written(name: str) -> str:
    uri = FOLDER + name
    return output_name(relative_stem(uri, FOLDER), ObjectRef(uri, 1, "1"), 0, 5, FINGERPRINT)


@given(NAMES)
@example("../../etc/passwd")
@example("/etc/passwd")
@example("x" * 300)
@example("a//../b")
def test_no_name_leaves_the_folder_or_hides_in_it(name: str) -> None:
    output = written(name)
    assert os.path.normpath(f"/out/{output}") == f"/out/{output}"
    for segment in output.split("/"):
        assert re.fullmatch(r"[\w%@=~+, -][\w%@=.~+, -]*", "".join("a" if category(c) in MARKS else c for c in segment))
        assert not segment.startswith("_")
        assert len(segment.encode()) <= 255
    told = parse_output_name(output)
    assert told is not None
    assert told.stem == relative_stem(FOLDER + name, FOLDER)


@given(NAMES, NAMES)
@example("k=[/a", "k=%5B/a")
def test_two_inputs_never_share_an_output(one: str, other: str) -> None:
    stems = [relative_stem(FOLDER + name, FOLDER) for name in (one, other)]
    folders_say_the_same = "=" in one and unquote(one) == unquote(other)
    assert (stems[0] == stems[1]) == (one == other) or folders_say_the_same
    assert (written(one) == written(other)) == (one == other)


def test_they_are_written_where_they_belong(tmp_path: Path) -> None:
    names = [*NASTY, "../../escaped", "/absolute", "a/../../b"]
    for name in names:
        put(f"{tmp_path}/out/{written(name)}", b"x")
    found = [os.path.join(folder, name) for folder, _, files in os.walk(tmp_path) for name in files]
    assert len(found) == len(names)
    assert all(path.startswith(f"{tmp_path}/out/") for path in found)

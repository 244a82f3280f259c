"""Patterns, and lists of them, to files: streamed, in order, each once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transforms.errors import HeadraceError, InvalidRequest, NotParquet, ObjectNotFound
from headrace.transforms.jobs.input_files import PassedOver, Survey, each_input, expand_lists, survey_inputs
from headrace.transforms.parquet.reader import read_footer
from headrace.transforms.shards.shard import source_digest
from headrace.transforms.storage import ObjectRef, StoreOptions, open_store
from tests.support.jobs import put

OPTIONS = StoreOptions()


@pytest.fixture(params=["local", "memory", "gcs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "gcs":
        return request.getfixturevalue("bucket")
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}-{tmp_path.parent.name}"


def fill(folder: str, *names: str) -> None:
    for name in names:
        put(f"{folder}/{name}", b"" if "empty" in name else b"PAR1")


def names(folder: str, *inputs: str) -> list[str]:
    patterns = expand_lists(
        tuple(f"@{folder}/{one[1:]}" if one[0] == "@" else f"{folder}/{one}" for one in inputs), OPTIONS
    )
    return [ref.uri.removeprefix(f"{folder}/") for ref in each_input(patterns, OPTIONS, PassedOver())]


def test_several_patterns_give_each_file_once_in_order(folder: str) -> None:
    fill(folder, "b/x.parquet", "a/y.parquet", "a/x.parquet", "c.parquet", "a.parquet", "a/z.csv")
    every = ["a.parquet", "a/x.parquet", "a/y.parquet", "b/x.parquet", "c.parquet"]
    assert names(folder, "**/*.parquet") == every
    assert names(folder, "*/x.parquet", "a/*.parquet", "a/x.parquet") == ["a/x.parquet", "a/y.parquet", "b/x.parquet"]
    assert names(folder, "c.parquet", "a.parquet", "c.parquet", "**/x*") == [every[i] for i in (0, 1, 3, 4)]


def test_what_is_hidden_or_empty_is_passed_over_and_counted(folder: str) -> None:
    fill(folder, "_in/a.parquet", "_in/_b.parquet", "_in/.x/c.parquet", "_in/empty.parquet")
    passed = PassedOver()
    found = [ref.uri for ref in each_input((f"{folder}/_in/**",), OPTIONS, passed)]
    assert found == [f"{folder}/_in/a.parquet"]
    assert (passed.hidden, passed.empty, passed.first_empty) == (2, 1, f"{folder}/_in/empty.parquet")
    assert names(folder, "_in/**", "_in/.x/*") == ["_in/.x/c.parquet", "_in/a.parquet"]
    with pytest.raises(ObjectNotFound, match=r"Nothing is left to read.*4 hidden and 0 empty"):
        names(folder, "**")


def test_where_all_that_matches_is_empty_the_first_is_named(folder: str) -> None:
    fill(folder, "in/empty-b.parquet", "in/empty-a.parquet")
    wanted = rf"Expected: .* of more than zero bytes .* 0 hidden and 2 empty files, .*{folder}/in/empty-a\.parquet"
    with pytest.raises(ObjectNotFound, match=wanted):
        names(folder, "in/*")


def test_an_empty_file_that_is_named_is_refused(folder: str) -> None:
    fill(folder, "in/a.parquet", "in/empty.parquet", "in/_empty.parquet")
    assert names(folder, "in/*", "in/_empty.parquet") == ["in/a.parquet"]
    put(f"{folder}/list.txt", b"in/a.parquet\nin/empty.parquet\n")
    for inputs in (["in/empty.parquet"], ["in/*", "in/empty.parquet"], ["@list.txt"]):
        with pytest.raises(NotParquet, match=rf"{folder}/in/empty\.parquet is not a Parquet file.* Found: zero bytes"):
            names(folder, *inputs)


def test_a_list_names_files_and_globs(folder: str) -> None:
    fill(folder, *(f"in/{i}/part.parquet" for i in range(40)), "more/a.parquet")
    lines = [
        "\ufeff# files, a glob and a relative name",
        "",
        *(f"  {folder}/in/{i}/part.parquet\r" for i in range(33)),
    ]
    put(f"{folder}/lists/today.txt", "\n".join([*lines, f"{folder}/in/3[5-9]/*"]).encode())
    wanted = sorted(f"in/{i}/part.parquet" for i in (*range(33), *range(35, 40)))
    assert names(folder, "@lists/today.txt") == wanted
    assert names(folder, "@lists/today.txt", "more/*") == [*wanted, "more/a.parquet"]
    put(f"{folder}/near.txt", b"more/a.parquet\n")
    assert names(folder, "@near.txt") == ["more/a.parquet"]


def test_a_line_ends_where_a_line_feed_is(tmp_path: Path) -> None:
    name = f"{tmp_path}/a\u2028b\x0cc.parquet"
    (tmp_path / "list.txt").write_bytes(f"{name}\r\n{tmp_path}/d.parquet".encode())
    assert expand_lists((f"@{tmp_path}/list.txt",), OPTIONS) == (name, f"{tmp_path}/d.parquet")


def test_a_query_is_no_part_of_a_lists_folder(bucket: str, emulator: str) -> None:
    put(f"{bucket}/list.txt", b"a.parquet\n")
    folder = f"{emulator}/download/storage/v1/b/{bucket.removeprefix('gs://')}/o"
    assert expand_lists((f"@{folder}/list.txt?alt=media&sig=a/b",), OPTIONS) == (f"{folder}/a.parquet",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"# nothing\n\n", "no line"),
        (b"@other.txt\n", "a list within a list"),
        (b"PAR1\xff\xfe\n", "is not a list of files.*without the @"),
        (b"gs://b/a.parquet\n/b/c.parquet\n", "several stores"),
    ],
)
def test_what_is_no_list_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InvalidRequest, match=told):
        expand_lists((f"@{tmp_path}/list.txt",), OPTIONS)


def test_a_list_that_is_not_there_is_told(folder: str) -> None:
    with pytest.raises(ObjectNotFound, match=r"--input=@.*list\.txt names no file.*workers can read it"):
        expand_lists((f"@{folder}/list.txt",), OPTIONS)


@pytest.mark.parametrize("name", ["in", "in/"])
def test_a_folder_is_its_files_and_in_a_list_the_glob_that_is_meant_is_named(folder: str, name: str) -> None:
    fill(folder, "in/a.parquet", "in/b/c.parquet", "in/d.txt")
    assert names(folder, name) == ["in/a.parquet", "in/b/c.parquet"]
    put(f"{folder}/list.txt", name.encode())
    with pytest.raises(
        ObjectNotFound, match=rf"is a folder.*a\.parquet.*{folder}/in/\*\.parquet.*{folder}/in/\*\*/\*\.parquet"
    ):
        list(each_input(expand_lists((f"@{folder}/list.txt",), OPTIONS), OPTIONS, PassedOver()))
    with pytest.raises(ObjectNotFound, match="inn"):
        names(folder, "inn")


def survey(folder: str, *patterns: str) -> Survey:
    return survey_inputs(tuple(f"{folder}/{pattern}" for pattern in patterns), OPTIONS, lambda _: None)


def test_a_survey_tells_first_count_and_partitions(folder: str) -> None:
    fill(folder, "in/dt=2/c=x/a.parquet", "in/dt=1/c=y/a.parquet", "in/dt=1/c=y/_b", "in/dt=1/c=y/empty.parquet")
    told = survey(folder, "in/**")
    assert (told.first.uri, told.files) == (f"{folder}/in/dt=1/c=y/a.parquet", 2)
    assert (told.passed.hidden, told.passed.empty) == (1, 1)
    assert told.partitions == ("dt", "c")
    assert survey(folder, "in/dt=1/**").partitions == ("c",)
    fill(folder, "in/c=z/dt=3/a.parquet")
    assert survey(folder, "in/**").partitions == ("c", "dt")
    fill(folder, "in/dt=4/a.parquet")
    assert survey(folder, "in/**").partitions == ()


@given(st.sets(st.integers(0, 30), min_size=1), st.lists(st.integers(0, 30)))
def test_a_survey_knows_its_files(numbers: set[int], asked: list[int]) -> None:
    def ref(number: int) -> ObjectRef:
        return ObjectRef(f"memory://b/{number}", 4, str(number))

    sources = np.sort(np.array([source_digest(ref(number)) for number in numbers], np.uint64))
    told = Survey(ref(0), len(sources), PassedOver(), sources, ())
    known = told.includes(source_digest(ref(number)) for number in asked)
    assert known.tolist() == [number in numbers for number in asked]


@pytest.mark.parametrize("asked", ["photos", "photos/*.parquet", "photos/**/*.parquet", "photos/cat.JPG"])
def test_images_given_for_parquet_say_how_to_make_it(tmp_path: Path, asked: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.JPG").write_bytes(b"\xff\xd8\xff" + bytes(100))
    with pytest.raises(
        HeadraceError, match=r"These are images.*examples/folder_of_images\.py.*--decode_image.*docs/images\.md"
    ):
        _read_all(f"{tmp_path}/{asked}")


def _read_all(pattern: str) -> None:
    for ref in each_input((pattern,), OPTIONS, PassedOver()):
        read_footer(open_store(ref.uri), ref)

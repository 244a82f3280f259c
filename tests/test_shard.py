import pickle
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.shard import common_folder, output_name, parse_output_name, relative_stem, split_file
from transforms.storage import ObjectRef

FINGERPRINT = "0123456789abcdef" * 4
SOURCE = ObjectRef("gs://b/in/a.parquet", 100, "7")


def split(rows: Any, sizes: Any, shard_bytes: Any) -> Any:
    return list(split_file(SOURCE, "a", rows, sizes, shard_bytes, FINGERPRINT))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))), st.integers(1, 120))
def test_shards_of_a_file_hold_each_row_group_once_and_stay_within_the_bound(groups: Any, shard_bytes: Any) -> None:
    rows, sizes = [group[0] for group in groups], [group[1] for group in groups]
    shards = split(rows, sizes, shard_bytes)
    spans = [shard.row_groups for shard in shards]
    assert [i for span in spans for i in range(*span)] == list(range(len(groups)))
    next_row = 0
    for shard in shards:
        assert shard.first_row == next_row
        next_row = shard.end_row
        assert shard.rows == sum(rows[slice(*shard.row_groups)])
        assert shard.nbytes <= shard_bytes or shard.row_groups[1] - shard.row_groups[0] == 1
    assert next_row == sum(rows)


def test_a_file_without_rows_is_one_shard_without_rows() -> None:
    assert [(shard.rows, shard.row_groups) for shard in split([], [], 10)] == [(0, (0, 0))]


def test_names_sort_in_input_order_and_tell_what_they_hold() -> None:
    shards = split([5, 7, 9], [1, 1, 1], 1)
    assert [shard.output for shard in shards] == sorted(shard.output for shard in shards)
    told = parse_output_name(shards[1].output)
    assert told is not None
    assert (told.stem, told.first_row, told.end_row, told.job) == ("a", 5, 12, FINGERPRINT[:8])


@pytest.mark.parametrize(
    "name", ["a.parquet", "_SUCCESS", "a-000000000000-000000000005-0123.parquet", "part-0.csv", ""]
)
def test_other_names_are_nobodys_shard(name: str) -> None:
    assert parse_output_name(name) is None


@given(st.sampled_from(["uri", "version", "first", "rows", "fingerprint"]))
def test_whatever_a_shard_is_changes_its_name(changed: Any) -> None:
    def name(
        uri: Any = "gs://b/in/a.parquet",
        version: Any = "7",
        first: int = 0,
        rows: Any = 5,
        fingerprint: Any = FINGERPRINT,
    ) -> Any:
        return output_name("a", ObjectRef(uri, 100, version), first, rows, fingerprint)

    other: dict[str, Any] = {
        "uri": "gs://b/x/a.parquet",
        "version": "8",
        "first": 1,
        "rows": 6,
        "fingerprint": "f" * 64,
    }
    assert name(**{changed: other[changed]}) != name()
    assert name() == name()


@pytest.mark.parametrize(
    ("patterns", "folder"),
    [
        (("gs://b/in/*.parquet",), "gs://b/in/"),
        (("gs://b/in/a/*.parquet", "gs://b/in/b/*.parquet"), "gs://b/in/"),
        (("gs://b/in/a/*.parquet", "gs://b/inner/*.parquet"), "gs://b/"),
        (("gs://b/*.parquet", "gs://c/*.parquet"), "gs://"),
        (("in/*.parquet", "/in/*.parquet"), ""),
        (("*.parquet",), ""),
        (("gs://b/in/one.parquet",), "gs://b/in/"),
    ],
)
def test_the_common_folder_lies_above_every_pattern(patterns: Any, folder: str) -> None:
    assert common_folder(patterns) == folder


@given(st.text(string.ascii_letters + "/._-= %é\n", min_size=1))
def test_no_input_name_leaves_the_output_folder_or_hides_in_it(name: str) -> None:
    segments = relative_stem(f"gs://b/in/{name}", "gs://b/in/").split("/")
    assert not any(segment.startswith((".", "_")) for segment in segments)


def test_different_inputs_have_different_stems() -> None:
    names = ["a/b", "a%2Fb", "a b", "a%20b", "_a", "%5Fa", "é", "%C3%A9"]
    stems = {relative_stem(f"gs://b/{name}.parquet", "gs://b/") for name in names}
    assert len(stems) == len(names)


def test_long_names_fit_into_a_file_system_and_stay_apart() -> None:
    stems = [
        relative_stem(f"gs://b/{name}.parquet", "gs://b/") for name in ("漢" * 80, "漢" * 81, "a" * 247, "_" * 247)
    ]
    names = [output_name(stem, SOURCE, 0, 5, FINGERPRINT) for stem in stems]
    assert len(set(stems)) == len(stems)
    assert max(len(name) for name in names) <= 255
    assert [told.stem for name in names if (told := parse_output_name(name))] == stems


def test_shards_survive_pickling() -> None:
    shard = split([5], [1], 1)[0]
    assert pickle.loads(pickle.dumps(shard)) == shard

import pickle
import string
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.transforms.shards.partitions import partition_values
from headrace.transforms.shards.shard import (
    common_folder,
    output_name,
    parse_output_name,
    relative_stem,
    source_digest,
    split_file,
)
from headrace.transforms.storage import ObjectRef

FINGERPRINT = "0123456789abcdef" * 4
SOURCE = ObjectRef("gs://b/in/a.parquet", 100, "7")


def split(rows: Any, sizes: Any, shard_bytes: Any) -> Any:
    return list(split_file(SOURCE, "a", rows, sizes, shard_bytes, FINGERPRINT))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))), st.integers(1, 120))
def test_shards_of_a_file_hold_each_row_group_once_and_stay_within_the_bound(groups: Any, shard_bytes: Any) -> None:
    rows, sizes = [group[0] for group in groups], [group[1] for group in groups]
    shards = split(rows, sizes, shard_bytes)
    spans = [shard.row_groups for shard in shards]
    assert [i for span, _ in groupby(spans) for i in range(*span)] == list(range(len(groups)))
    next_row = 0
    for shard in shards:
        assert shard.first_row == next_row
        next_row = shard.end_row
        assert shard.first_row - shard.skip == sum(rows[: shard.row_groups[0]])
        assert shard.end_row <= sum(rows[: shard.row_groups[1]])
        assert shard.nbytes <= shard_bytes or shard.row_groups[1] - shard.row_groups[0] == 1
    assert next_row == sum(rows)
    assert sum(shard.nbytes for shard in shards) == sum(sizes)


def test_only_a_huge_row_group_is_cut_into_spans_and_read_twice_at_most() -> None:
    shards = split([10, 7, 10], [100, 5, 200], 99)
    assert [(shard.first_row, shard.rows, shard.skip) for shard in shards] == [
        *[(0, 10, 0), (10, 7, 0)],
        *[(17, 3, 0), (20, 3, 3), (23, 4, 6)],
    ]
    assert sum(shard.skip + shard.rows for shard in shards[2:]) <= 2 * 10
    assert [shard.rows for shard in split([2], [1000], 1)] == [1, 1]
    assert [shard.rows for shard in split([0], [1000], 1)] == [0]


def test_a_file_without_rows_is_one_shard_without_rows() -> None:
    assert [(shard.rows, shard.row_groups) for shard in split([], [], 10)] == [(0, (0, 0))]


def test_names_sort_in_input_order_and_tell_what_they_hold() -> None:
    shards = split([5, 7, 9], [1, 1, 1], 1)
    assert [shard.output for shard in shards] == sorted(shard.output for shard in shards)
    told = parse_output_name(shards[1].output)
    assert told is not None
    assert (told.stem, told.first_row, told.end_row, told.job) == ("a", 5, 12, FINGERPRINT[:8])
    assert told.source == source_digest(SOURCE)


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
    bare = ["a/b", "a%2Fb", "a b", "a%20b", "_a", "%5Fa", "é", "%C3%A9", "a", "a@", "a.parquet", "a//b", "a/@/b", "/a"]
    names = [*bare, *(f"{name}.parquet" for name in bare if name != "a")]
    stems = {relative_stem(f"gs://b/{name}", "gs://b/") for name in names}
    assert len(stems) == len(names)


def test_folders_tell_partitions() -> None:
    def values(name: str) -> object:
        return partition_values(f"gs://b/x=1/in/{name}", "gs://b/x=1/in/")

    assert values("dt=2026-11-01/country=a%2Fb/k=v.parquet") == (("dt", "2026-11-01"), ("country", "a/b"))
    assert values("a/dt=__HIVE_DEFAULT_PARTITION__/b/n=/c.parquet") == (("dt", None), ("n", ""))
    assert values("dt=1/dt=2=3/c.parquet") == (("dt", "2=3"),)
    assert values("=1/a.parquet") == values("a.parquet") == ()


def test_long_names_fit_into_a_file_system_and_stay_apart() -> None:
    stems = [
        relative_stem(f"gs://b/{name}.parquet", "gs://b/")
        for name in ("漢" * 80, "漢" * 81, "a" * 247, "_" * 247, "a" * 183)
    ]
    names = [output_name(stem, SOURCE, 0, 5, FINGERPRINT) for stem in stems]
    assert len(set(stems)) == len(stems)
    # And 17 for a file of dead letters of the same name.
    assert max(len(name) for name in names) <= 255 - 17
    assert [told.stem for name in names if (told := parse_output_name(name))] == stems


def test_shards_survive_pickling() -> None:
    shard = split([5], [1], 1)[0]
    assert pickle.loads(pickle.dumps(shard)) == shard

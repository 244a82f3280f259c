"""Every column and tensor can be named in every flag, by one rule; and lists of names, stars and folders are understood."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.cli import main
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.names import quote_name, split_names, split_pair
from headrace.pipeline.flags.request import Request, parse_request
from tests.support.jobs import model_folder, names_in, put, put_inputs, put_table, read_output, rows

Capture = pytest.CaptureFixture[str]
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(' ,="\\\\\n\t\x00é', max_size=6),
    st.sampled_from(["", " ", '"', '""', "\\,", "a,b", " a", "a ", "a=b", '"a"', "{}", "null", "*"]),
)


def request(*flags: str) -> Request:
    return parse_request(parse_flags(["--model=m", "--input=i", "--output=o", *flags]), "run")


@given(st.lists(NAMES, min_size=1, max_size=4))
@example([""])
@example(['"', '"'])
def test_every_name_can_be_written(names: list[str]) -> None:
    written = ",".join(map(quote_name, names))
    assert [name.text for name in split_names(written)] == names
    name, rest = split_pair(f"{quote_name(names[0])}={written}")
    assert (name.text, rest) == (names[0], written)


@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), NAMES)
def test_every_flag_takes_it(names: list[str], tensor: str) -> None:
    columns, key = ",".join(map(quote_name, names)), quote_name(tensor)
    asked = request(f"--feature={key}={columns}", f"--keep={columns}", f"--cast={columns}", f"--prediction={key}={key}")
    assert (asked.features, asked.keep) == ({tensor: tuple(names)}, tuple(names))
    assert (list(asked.cast), asked.predictions) == (names, {tensor: tensor})
    asked = request(f"--fill={key}= a,b", f"--pad={key}=", f"--decode_image={key}=2x3")
    assert (asked.fill, asked.pad, asked.decode_image) == ({tensor: " a,b"}, {tensor: ""}, {tensor: (2, 3)})


def test_what_is_no_json_string_is_a_name_as_it_is() -> None:
    assert request('--keep="a,b",c"d').keep == ("a,b", 'c"d')
    assert request('--keep="a,b').keep == ('"a', "b")
    assert request('--keep="a"b').keep == ('"a"b',)
    assert request("--keep=").keep == request("--keep=, ").keep == ()
    assert request('--keep=""').keep == ("",)


WEIRD = [" id", "", "a,b", 'q"', "line\nbreak", "tab\t", "a=b", "id "]


def test_columns_of_any_name_are_kept_and_fed(tmp_path: Path) -> None:
    table = rows(0, 5)
    for i, name in enumerate(WEIRD):
        table = table.append_column(name, pa.array(range(i, i + 5)))
    table = table.rename_columns([" x " if name == "x" else name for name in table.column_names])
    put_table(f"{tmp_path}/in/a.parquet", table)
    keep = ",".join(map(quote_name, WEIRD))
    flags = [
        f"--model={model_folder()}/saved_model",
        f"--input={tmp_path}/in",
        f"--output={tmp_path}/out",
        "--report=none",
    ]
    assert main([*flags, "--feature=x= x ", f"--keep={keep}"]) == 0
    assert read_output(f"{tmp_path}/out").select(range(len(WEIRD))).equals(table.select(WEIRD))


def test_blanks_after_commas_do_no_harm_where_no_column_has_them(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/in", [5])
    flags = [
        "--model=" + f"{model_folder()}/saved_model",
        f"--input={tmp_path}/in/*.parquet",
        f"--output={tmp_path}/out",
    ]
    job = prepare(parse_request(parse_flags([*flags, "--keep=id, name", "--feature=x = x"]), "run")).job
    assert job.keep == ("id", "name")
    assert job.models[0].columns.features == (("x", ("x",)),)


@pytest.fixture
def doubles(tmp_path: Path) -> list[str]:
    table = rows(0, 5)
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(20)), 4)
    put_table(f"{tmp_path}/in/a.parquet", table.set_column(2, "x", x))
    return [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in", f"--output={tmp_path}/out"]


def test_a_star_casts_every_input(doubles: list[str], capfd: Capture) -> None:
    assert main(["plan", *doubles]) == 2
    assert "--cast x" in capfd.readouterr().err
    records = [
        prepare(parse_request(parse_flags([*doubles, flag]), "run")).job.fingerprint
        for flag in ("--cast=*", "--cast=x")
    ]
    assert records[0] == records[1]
    assert main(["plan", *doubles, "--cast=x,y"]) == 2
    assert "'y'" in capfd.readouterr().err
    named = [f"--model=a={model_folder()}/saved_model", f"--model=b={model_folder()}/saved_model", *doubles[1:]]
    both = prepare(parse_request(parse_flags([*named, "--cast=*"]), "run")).job.models
    assert [model.columns.rules.cast for model in both] == [("x",), ("x",)]
    assert main(["plan", *named, "--cast=a.*"]) == 2
    assert main(["plan", *named, "--cast=a.*,b.x"]) == 0


@pytest.mark.parametrize("name", ["in", "in.parquet", "in/"])
def test_a_folder_is_all_parquet_files_in_it_and_below(name: str, tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/{name.rstrip('/')}", [5])
    put_inputs(f"{tmp_path}/{name.rstrip('/')}/deeper", [3])
    put(f"{tmp_path}/{name.rstrip('/')}/notes.txt", b"no Parquet")
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/{name}", f"--output={tmp_path}/out"]
    assert main([*flags, "--report=none"]) == 0
    assert read_output(f"{tmp_path}/out").num_rows == 8
    assert sum(name.endswith(".parquet") for name in names_in(f"{tmp_path}/out")) == 2


def test_an_output_named_as_a_file_is_refused_with_a_way_out(doubles: list[str], capfd: Capture) -> None:
    for command, name in (("plan", ".parquet"), ("run", ".parquet"), ("plan", ".CSV/"), ("plan", "/*.pq")):
        assert main([command, *doubles[:2], f"{doubles[2]}{name}"]) == 2
        error = capfd.readouterr().err
        assert "has the name of a file. Expected: a folder" in error
        assert f"as in {doubles[2]}. " in error
        assert "--compact and --single_file" in error
    flags = [*doubles, "--on_error=dead_letter", "--dead_letters=bad.parquet"]
    assert main(["plan", *flags]) == 2
    assert "--dead_letters=bad.parquet has the name of a file. Expected: a folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    "pairs",
    ["--prediction=y=a,z=b", "--top_k=y=5,z=3", "--decode_image=x=8x8, z=8x8", "--fill=x=0,y=0", "--constant=x=1,y=2"],
)
def test_pairs_with_commas_are_refused_with_a_flag_for_each(pairs: str, doubles: list[str], capfd: Capture) -> None:
    flag, _, value = pairs.partition("=")
    assert main(["plan", *doubles, "--cast=*", pairs]) == 2
    error = " ".join(capfd.readouterr().err.split())
    assert f"Give each by itself: {' '.join(f'{flag}={pair.strip()}' for pair in value.split(','))}" in error


def test_a_column_may_have_such_a_name_in_quotes_or_after_a_backslash() -> None:
    for written in ('"a,b=c"', "a\\,b=c"):
        assert request(f"--prediction=y={written}").predictions == {"y": "a,b=c"}


def test_two_commands_are_one_too_many(doubles: list[str], capfd: Capture) -> None:
    assert main(["plan", "verify", *doubles]) == 2
    assert "'verify' is a second command" in capfd.readouterr().err


def test_the_plan_answers_in_json_too(doubles: list[str], capfd: Capture) -> None:
    assert main(["plan", *doubles, "--cast=*", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)

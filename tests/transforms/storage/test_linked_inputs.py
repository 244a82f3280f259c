"""Whatever a pattern matches below a local folder is read, or it is an error, or it is counted and named."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.cli import main
from headrace.transforms.errors import AccessDenied, ObjectNotFound, StorageError
from headrace.transforms.jobs.input_files import PassedOver, each_input
from headrace.transforms.storage import StoreOptions
from headrace.transforms.storage.local import LocalStore
from headrace.transforms.storage.store import glob_regex
from tests.support.jobs import model_folder, put_inputs, read_output


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PAR1")


def found(tmp_path: Path, pattern: str) -> tuple[list[str], PassedOver]:
    passed = PassedOver()
    refs = list(each_input((f"{tmp_path}/{pattern}",), StoreOptions(), passed))
    assert [ref.uri for ref in refs] == sorted(ref.uri for ref in refs)
    return [ref.uri.removeprefix(f"{tmp_path}/") for ref in refs], passed


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    put(tmp_path / "in/a/1.parquet")
    put(tmp_path / "elsewhere/2.parquet")
    put(tmp_path / "elsewhere/deep/3.parquet")
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/a/4.parquet").symlink_to("../../elsewhere/2.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*/*.parquet", ["in/a/1.parquet", "in/a/4.parquet", "in/b/2.parquet"]),
        ("in/**/*.parquet", ["in/a/1.parquet", "in/a/4.parquet", "in/b/2.parquet", "in/b/deep/3.parquet"]),
        ("in/b/*.parquet", ["in/b/2.parquet"]),
        ("in/[ab]/[1-9].parquet", ["in/a/1.parquet", "in/a/4.parquet", "in/b/2.parquet"]),
        ("in/b/**", ["in/b/2.parquet", "in/b/deep/3.parquet"]),
        ("in/?/d*/*", ["in/b/deep/3.parquet"]),
    ],
)
def test_links_to_folders_are_followed(linked: Path, pattern: str, expected: list[str]) -> None:
    names, passed = found(linked, pattern)
    assert names == expected
    # What a plain `*` matches as well is a folder of which nothing is read.
    assert passed.others == 0


def test_a_loop_is_noted_and_each_file_read_once(linked: Path) -> None:
    (linked / "in/a/up").symlink_to(linked / "in")
    (linked / "elsewhere/self").symlink_to(".")
    names, passed = found(linked, "in/**/*.parquet")
    assert names == ["in/a/1.parquet", "in/a/4.parquet", "in/b/2.parquet", "in/b/deep/3.parquet"]
    assert passed.others == 2
    assert f"{linked}/in/a/up/ is a link back to a folder above it" in passed.first_other


def test_what_no_match_can_lie_in_is_not_entered(linked: Path) -> None:
    """A link to the root of the file system, say."""
    (linked / "in/root").symlink_to("/")
    assert found(linked, "in/[ab]/*.parquet")[0] == ["in/a/1.parquet", "in/a/4.parquet", "in/b/2.parquet"]
    put(linked / "in/0.parquet")
    assert found(linked, "in/*.parquet")[0] == ["in/0.parquet"]


@pytest.mark.parametrize("pattern", ["in/*.parquet", "in/**/*.parquet", "in/*", "in/**", "in/g[o]ne.parquet"])
@pytest.mark.parametrize("target", ["nowhere", "gone.parquet", "0.parquet/x", "/nowhere/at/all"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, pattern: str, target: str) -> None:
    put(tmp_path / "in/0.parquet")
    (tmp_path / "in/gone.parquet").symlink_to(target)
    with pytest.raises(ObjectNotFound, match=r"gone\.parquet matches the pattern and leads nowhere.*a link t"):
        found(tmp_path, pattern)


def test_a_link_that_may_have_led_to_a_folder_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "in/a/1.parquet")
    (tmp_path / "in/b").symlink_to("gone")
    for pattern in ("in/*/*.parquet", "in/**/*.parquet", "in/?/1.parquet"):
        with pytest.raises(ObjectNotFound, match="in/b matches"):
            found(tmp_path, pattern)
    # It can hold nothing that these match.
    for pattern in ("in/a/*.parquet", "in/[a]/*"):
        assert found(tmp_path, pattern)[0] == ["in/a/1.parquet"]


def test_a_named_link_that_leads_nowhere_says_where_it_led(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").symlink_to("gone")
    with pytest.raises(ObjectNotFound, match="a link to gone, which does not exist"):
        found(tmp_path, "x.parquet")


def test_hidden_links_are_passed_over(tmp_path: Path) -> None:
    """An editor's lock is one that leads nowhere."""
    put(tmp_path / "in/1.parquet")
    (tmp_path / "in/.#1.parquet").symlink_to("me@host.123")
    (tmp_path / "in/_old").symlink_to("gone")
    for pattern in ("in/*.parquet", "in/**/*.parquet", "in/**"):
        assert found(tmp_path, pattern)[0] == ["in/1.parquet"]


@pytest.mark.parametrize("kind", ["a named pipe", "a socket"])
def test_what_is_no_file_is_an_error(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in/1.parquet")
    monkeypatch.chdir(tmp_path / "in")  # a socket's path must be short
    if kind == "a socket":
        bound = socket.socket(socket.AF_UNIX)
        bound.bind("2.parquet")
        bound.close()
    else:
        os.mkfifo("2.parquet")
    for pattern in ("in/*.parquet", "in/**"):
        with pytest.raises(StorageError, match=rf"in/2\.parquet matches the pattern.*Found: {kind}"):
            found(tmp_path, pattern)
    assert found(tmp_path, "in/1*")[0] == ["in/1.parquet"]


def test_a_device_by_a_link(tmp_path: Path) -> None:
    put(tmp_path / "in/1.parquet")
    (tmp_path / "in/2.parquet").symlink_to("/dev/null")
    with pytest.raises(StorageError, match="a character device"):
        found(tmp_path, "in/*.parquet")


def test_a_folder_that_matches_is_noted(tmp_path: Path) -> None:
    """As Spark writes them."""
    put(tmp_path / "in/1.parquet")
    put(tmp_path / "in/2.parquet/part-0.parquet")
    put(tmp_path / "in/_3.parquet/part-0.parquet")
    names, passed = found(tmp_path, "in/*.parquet")
    assert names == ["in/1.parquet"]
    assert (passed.others, passed.first_other.partition(",")[0]) == (1, f"{tmp_path}/in/2.parquet/ is a folder")
    names, passed = found(tmp_path, "in/**/*.parquet")
    assert (len(names), passed.others) == (2, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="NOT SHOWN how a folder without rights is refused: root may read all")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "in/a/1.parquet")
    put(tmp_path / "in/b/2.parquet")
    os.chmod(tmp_path / "in/b", 0)
    try:
        with pytest.raises(AccessDenied, match="in/b"):
            found(tmp_path, "in/*/*.parquet")
    finally:
        os.chmod(tmp_path / "in/b", 0o700)


_NAMES = st.sampled_from(["a", "b", "x.parquet", "[", "_h", ".h", "ä b"])
_SEGMENTS = st.sampled_from(["*", "**", "a", "?", "*.parquet", "[ab]", "[!a]", "[[]", "x*", "[a/b]"])


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(_NAMES, min_size=1, max_size=4), min_size=1, max_size=8),
    pattern=st.lists(_SEGMENTS, min_size=1, max_size=4),
)
def test_without_links_it_finds_what_the_pattern_says(
    files: list[list[str]], pattern: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No folder is left out in which something matches."""
    folder = tmp_path_factory.mktemp("glob")
    for parts in files:
        path = folder.joinpath(*parts)
        if not path.exists() and not any(above.is_file() for above in path.parents):
            put(path)
    asked = f"{folder}/{'/'.join(pattern)}*"
    every = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    assert [ref.uri for ref in LocalStore().glob(asked)] == [uri for uri in every if glob_regex(asked).fullmatch(uri)]


def test_a_job_reads_linked_rows_and_says_what_it_did_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_inputs(f"{tmp_path}/in/a", [2])
    put_inputs(f"{tmp_path}/elsewhere", [3])
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/c.parquet").mkdir()
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/**/*.parquet", "--report=none"]
    assert main([*flags, f"--output={tmp_path}/out"]) == 0
    assert "Not files, and so passed over: 2. The first of them: " in capfd.readouterr().err
    table = read_output(f"{tmp_path}/out")
    assert isinstance(table, pa.Table)
    assert table.num_rows == 5
    (tmp_path / "in/a/gone.parquet").symlink_to("nowhere")
    assert main(["plan", *flags, f"--output={tmp_path}/out2"]) == 2
    assert "a link to nowhere, which does not exist" in capfd.readouterr().err


def test_a_link_into_the_output_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put_inputs(f"{tmp_path}/in", [2])
    put_inputs(f"{tmp_path}/out/old", [2])
    (tmp_path / "in/results").symlink_to(tmp_path / "out")
    flags = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/**/*.parquet"]
    assert main(["plan", *flags, f"--output={tmp_path}/out"]) == 2
    assert "is where --input reads from" in capfd.readouterr().err

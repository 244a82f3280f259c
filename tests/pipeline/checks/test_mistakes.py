"""Each mistake a person can make, through the command line: one paragraph with the cure, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.pipeline.cli import main
from headrace.transforms.errors import StorageError
from headrace.transforms.storage import ObjectRef, open_store
from headrace.transforms.storage.local import LocalStore
from tests.support.jobs import model_folder, names_in, put, put_inputs, put_model, put_table, read_output, rows

Capture = pytest.CaptureFixture[str]


def test_a_store_that_does_not_answer_is_no_wrong_request(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command later is right: schedulers that leave a wrong one alone try this one again."""
    monkeypatch.setattr("headrace.transforms.storage.http_ranges.time.sleep", lambda _: None)
    put_inputs(f"{tmp_path}/in", [5])
    argv = ["--model=http://127.0.0.1:9/m.keras", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]
    assert main(argv) == 1
    assert "Cannot start: Asking for http://127.0.0.1:9/m.keras failed 8 times" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_overwritten_half_is_no_wrong_request(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_inputs(f"{tmp_path}/in", [5, 6])
    argv = [f"--model={model_folder()}/saved_model", f"--input={tmp_path}/in/*.parquet", f"--output={tmp_path}/out"]
    assert main(argv) == 0
    delete, left = LocalStore.delete, 2

    def denied(store: LocalStore, ref: ObjectRef) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StorageError(f"{ref.uri} cannot be deleted", found="HTTP 503")
        delete(store, ref)

    monkeypatch.setattr(LocalStore, "delete", denied)
    capfd.readouterr()
    assert main([*argv, "--batch_size=3", "--overwrite"]) == 1
    assert "objects were removed before it failed" in capfd.readouterr().err
    monkeypatch.undo()
    assert main([*argv, "--batch_size=3", "--overwrite"]) == 0
    assert read_output(f"{tmp_path}/out").num_rows == 11


def test_a_terminal_without_the_letters_of_a_name_ends_nothing(tmp_path: Path) -> None:
    put_inputs(f"{tmp_path}/日本", [5])
    argv = [
        "plan",
        f"--model={model_folder()}/saved_model",
        f"--input={tmp_path}/日本/*.parquet",
        f"--output={tmp_path}/o",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "headrace", *argv],
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"??? " in done.stdout  # of what is drawn


@pytest.fixture
def place(bucket: str) -> Any:
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [20, 30])
    return bucket


def command(place: str, *more: Any, **instead: Any) -> Any:
    flags = {"model": f"{place}/model", "input": f"{place}/in/*.parquet", "output": f"{place}/out"} | instead
    return [f"--{name}={value}" for name, value in flags.items()] + list(more)


def refused(capfd: Capture, argv: list[str], *fragments: str) -> Any:
    """The one paragraph, on standard error."""
    code = main(argv)
    out, err = capfd.readouterr()
    told = [line for line in err.splitlines() if line and "0000 00:00" not in line and not line.startswith("WARNING")]
    assert code == 2, err
    assert out == ""
    assert len(told) == 1, err
    assert told[0].startswith("Cannot start: ")
    for fragment in fragments:
        assert fragment in told[0]
    return told[0]


def test_no_such_model(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, model=f"{place}/modle"), f"{place}/modle")
    assert names_in(f"{place}/out") == []


@pytest.mark.parametrize("flag", ["model", "input", "output"])
def test_no_such_bucket(capfd: Capture, place: str, flag: str) -> None:
    name = {"model": "model", "input": "in/*.parquet", "output": "out"}[flag]
    refused(
        capfd, command(place, **{flag: f"gs://no-such-bucket-of-ours/{name}"}), "no bucket 'no-such-bucket-of-ours'"
    )


def test_a_folder_that_is_no_saved_model_says_what_it_holds(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, model=f"{place}/in"), f"{place}/in", "part-00000.parquet")


def test_a_truncated_keras_file(capfd: Capture, place: str) -> None:
    data = (model_folder() / "model.keras").read_bytes()
    put(f"{place}/cut.keras", data[: len(data) // 2])
    refused(capfd, command(place, model=f"{place}/cut.keras"), f"{place}/cut.keras", "truncated", "Copy the file again")


def test_a_signature_that_does_not_exist_names_those_that_do(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, "--signature=predict"), "'predict'", "serving_default", "--signature")


def test_no_file_matches_the_glob(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, input=f"{place}/in/*.parq"), f"{place}/in/*.parq", "part-00000.parquet")


def test_an_input_that_is_named_and_missing(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, input=f"{place}/in/part-7.parquet"), f"{place}/in/part-7.parquet")


def test_a_file_that_is_not_parquet(capfd: Capture, place: str) -> None:
    put(f"{place}/in/a.parquet", b"id,x\n1,2\n3,4\n")
    refused(capfd, command(place), f"{place}/in/a.parquet", "PAR1")


def test_a_truncated_parquet_file(capfd: Capture, place: str) -> None:
    store = open_store(place)
    whole = store.read(store.stat(f"{place}/in/part-00000.parquet"))
    put(f"{place}/in/a.parquet", whole[:-20])
    refused(capfd, command(place), f"{place}/in/a.parquet", "cut short")


def test_a_feature_column_that_is_missing_names_the_nearest(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, "--feature=x=nmae"), "'nmae'", "'name'", "part-00000.parquet", "columns id, name, x")


def test_an_input_of_the_model_that_does_not_exist(capfd: Capture, place: str) -> None:
    refused(
        capfd, command(place, "--feature=y=x"), "no input 'y'. Expected: the name of", "inputs x. Name one of these"
    )


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([["a"] * 4], pa.list_(pa.string(), 4)), "string"),
        (pa.array([[1.0] * 4], pa.list_(pa.float64(), 4)), "double"),
        (pa.array([[1.0] * 5], pa.list_(pa.float32(), 5)), "[5]"),
        (pa.array([1.0], pa.float32()), "float"),
    ],
)
def test_a_feature_column_of_the_wrong_type_or_length(capfd: Capture, place: str, column: Any, found: Any) -> None:
    put_table(f"{place}/in/a.parquet", pa.table({"x": column}))
    refused(capfd, command(place), f"{place}/in/a.parquet", "'x'", "float32", found)


def test_a_list_of_the_wrong_length_is_found_on_the_way(capfd: Capture, place: str) -> None:
    """Only the data tell it: the list's type allows any length."""
    put_table(f"{place}/lists/a.parquet", pa.table({"x": pa.array([[1.0] * 4, [1.0] * 3], pa.list_(pa.float32()))}))
    assert main(command(place, input=f"{place}/lists/*.parquet")) == 1
    err = capfd.readouterr().err
    assert "a.parquet" in err
    assert "row 1" in err
    assert "Traceback" not in err


def test_a_null_in_a_feature_is_told_as_one_of_perhaps_many(capfd: Capture, place: str) -> None:
    """The row that is named is looked at alone, which tells nothing of the others."""
    values = [[1.0] * 4, None, None, [1.0] * 4, None]
    put_table(f"{place}/nulls/a.parquet", pa.table({"x": pa.array(values, pa.list_(pa.float32()))}))
    assert main(command(place, input=f"{place}/nulls/*.parquet")) == 1
    told = capfd.readouterr().err
    assert "a.parquet is null in row 1." in told
    assert "Found: null. Fill or drop these rows" in told


def test_an_output_that_collides_with_a_kept_column(capfd: Capture, place: str) -> None:
    refused(
        capfd, command(place, "--prediction=output_0=id"), "'output_0'", "'id'", "--prediction output_0=id_predicted"
    )


def test_an_output_of_the_model_that_does_not_exist(capfd: Capture, place: str) -> None:
    told = refused(capfd, command(place, "--prediction=scores=id"), "no output 'scores'. Expected: the name of one")
    assert "outputs output_0. Name one of these" in told


def test_a_kept_column_that_does_not_exist(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, "--keep=idd"), "'idd'", "'id'")


def test_an_output_folder_that_cannot_be_written(capfd: Capture, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for command_name in ("plan", "run"):
        argv = [command_name, *command(place, output=str(tmp_path / "file" / "new" / "out"))]
        told = refused(capfd, argv, f"Found: a file at {tmp_path}/file. Name another --output.")
        assert "Expected: a folder that can be written." in told


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which nobody can make another")
def test_an_output_folder_that_cannot_be_made(capfd: Capture, place: str) -> None:
    told = refused(capfd, command(place, output="/proc/x/out"), "Expected: a folder that can be written.")
    assert "/proc" in told.partition(" Found: ")[2]
    assert told.endswith("Name another --output.")


def test_an_output_folder_with_other_peoples_files(capfd: Capture, place: str) -> None:
    put_table(f"{place}/out/theirs.parquet", rows(0, 1))
    refused(capfd, command(place, "--overwrite"), f"{place}/out", "theirs.parquet", "Name another --output")
    assert names_in(f"{place}/out") == ["theirs.parquet"]


def test_an_output_folder_that_the_input_matches(capfd: Capture, place: str) -> None:
    refused(capfd, command(place, output=f"{place}/in"), f"{place}/in", "no --input matches")


def test_a_record_that_is_none(capfd: Capture, place: str) -> None:
    put(f"{place}/out/_headrace/job.json", b"{}")
    refused(capfd, command(place), f"{place}/out/_headrace/job.json", "not a record of a job")


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--modle=m"], ["--modle", "Did you mean --model?"]),
        (["--region=r", "--batchsize=7"], ["--batchsize", "--batch_size"]),
        (["--model=m", "--input=i"], ["--output is missing"]),
        (["--model=m"], ["--input is missing"]),
        (["rnu", "--model=m"], ["'rnu'", "run"]),
        (["--model=m", "--input=a.parquet", "b.parquet", "--output=o"], ["b.parquet", "Quote"]),
        (["--model=m", "--input=i", "--output=o", "--batch_size=0"], ["--batch_size=0", "from 1"]),
        (["--model=m", "--input=i", "--output=o", "--limit=0"], ["--limit=0"]),
        (["--model=m", "--input=i", "--output=o", "--limit=x"], ["--limit"]),
        (["--model=m", "--input=i", "--output=o", "--feature=x"], ["--feature", "TENSOR=COLUMN", "got 'x'"]),
        (["--model=m", "--input=i", "--output=o", "--feature=x=a", "--feature=x=b"], ["'x' twice"]),
        (["--model=m", "--input=gs://b/*", "--input=/b/*", "--output=o"], ["several stores"]),
        (["--model=ftp://b/m", "--input=i", "--output=o"], ["ftp://"]),
    ],
)
def test_a_command_line_that_cannot_be_meant(capfd: Capture, argv: list[str], fragments: list[str]) -> None:
    refused(capfd, argv, *fragments)


@pytest.mark.timeout(120)
def test_no_credentials_is_told_soon_with_the_cure(tmp_path: Path) -> None:
    """Against a server of our own in Google's place, without the emulator's variable: real credentials are looked for."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE", "STORAGE", "CLOUD"))
    }
    environment |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true"}
    program = (
        "import http.server, threading, os, sys\n"
        "class Refuse(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        '        body = b\'{"error": {"message": "Anonymous caller does not have storage.objects.get access"}}\'\n'
        "        self.send_response(401)\n"
        "        self.send_header('Content-Length', str(len(body)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "    def log_message(self, *_): pass\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Refuse)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "os.environ['API_ENDPOINT_OVERRIDE'] = f'http://127.0.0.1:{server.server_port}'\n"
        "from headrace.pipeline.cli import main\n"
        "sys.exit(main(['--model=gs://private/model', '--input=gs://private/*.parquet', '--output=gs://private/out']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "no Google credentials were found" in done.stderr
    assert "gcloud auth application-default login" in done.stderr
    assert "Traceback" not in done.stderr


def test_verbose_adds_the_traceback(capfd: Capture, place: str) -> None:
    assert main(command(place, "--signature=predict", "--verbose")) == 2
    assert "Traceback (most recent call last)" in capfd.readouterr().err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `model` and `in/a.parquet`; the working directory."""
    put_model("saved_model", f"{tmp_path}/model")
    put_table(f"{tmp_path}/in/a.parquet", rows(0, 20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "output"),
    [("./**/*.parquet", "out"), ("**/a*.parquet", "out"), ("in/*.parquet", "./in"), ("*/*/../../in/*.parquet", "in")],
)
def test_an_output_that_the_next_run_would_read(capfd: Capture, here: Path, pattern: str, output: str) -> None:
    refused(capfd, [f"--input={pattern}", f"--output={output}", "--model=model"], "is where --input reads from")
    assert not (here / "out").exists()


@pytest.mark.parametrize("output", ["/", "gs://"])
def test_the_root_is_no_output_folder(capfd: Capture, here: Path, output: str) -> None:
    argv = ["--input=in/a.parquet", f"--output={output}", "--model=model"]
    refused(capfd, argv, f"--output={output} is not a folder of its own")
    assert sorted(os.listdir(here)) == ["in", "model"]


def test_a_name_that_is_no_text(capfd: Capture, here: Path) -> None:
    os.link(b"in/a.parquet", b"in/\xff.parquet")
    refused(capfd, ["--input=in/*", "--output=out", "--model=model"], "not UTF-8", "udcff.parquet", "Rename")


@pytest.mark.parametrize(
    ("runner", "told"), [("NoSuchRunner", "Beam refuses"), ("DataflowRunner", "--project is missing")]
)
def test_a_runner_that_cannot_be_is_told_before_anything_is_written(
    capfd: Capture, here: Path, runner: str, told: str
) -> None:
    refused(capfd, ["--input=in/*", "--output=out", "--model=model", f"--runner={runner}"], told)
    assert not (here / "out").exists()


def test_a_local_file_is_one_file_however_it_is_named(capfd: Capture, here: Path) -> None:
    names = [f"--input={name}" for name in ("in/*.parquet", "./in/a.parquet", f"{here}/in//a.parquet")]
    assert main([*names, "--output=out/", "--model=model/", "--keep=id,id"]) == 0
    assert read_output(f"{here}/out")["id"].to_pylist() == list(range(20))
    capfd.readouterr()
    names = [f"--input=file://{here}/in/*.parquet"] + [f"--input={here}/in/a.parquet"] * 2
    assert main([*names, f"--output=file://{here}/out", f"--model={here}/model", "--keep=id"]) == 0
    assert "Nothing to do" in capfd.readouterr().out


def test_values_that_the_model_cannot_compute_with_name_file_and_rows(capfd: Capture, here: Path) -> None:
    import keras

    inputs = keras.Input((1,), name="word", dtype="int32")
    keras.Model(inputs, keras.layers.Embedding(10, 2)(inputs)).export(here / "words", verbose=False)
    put_table(f"{here}/words_in/a.parquet", pa.table({"word": pa.array([*range(9), 77], pa.int32())}))
    argv = ["--input=words_in/*", "--output=out", "--model=words", "--batch_size=4"]
    assert main(argv) == 1
    told = capfd.readouterr().err.splitlines()[-1]
    assert "Row 9 (counted from 0) of " in told
    assert "words_in/a.parquet" in told
    assert "77 is not in [0, 10)" in told
    assert told.endswith("let them go to dead letters: --on_error=dead_letter.")

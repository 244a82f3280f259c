"""docs/security.md says which permissions a job needs: those that the requests of whole jobs take, no more and no fewer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest

from headrace.pipeline.checks.output_folder import claim_output, examine_output
from headrace.pipeline.checks.preflight import prepare
from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.runners.launch import launch, open_pipeline
from tests.support.front import Front, Gate, served
from tests.support.jobs import put_inputs, put_model, put_table, rows

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
Needs = set[tuple[str, str]]


class Recorder:
    """Permission and place of each request, by https://cloud.google.com/storage/docs/access-control/iam-json."""

    def __init__(self) -> None:
        self.needs: Needs = set()

    def __call__(self, gate: Gate) -> bool:
        path, _, query = gate.path.partition("?")
        if "/rewriteTo/" in path:  # publishes `_SUCCESS`: reads one object and creates another
            source, _, target = path.partition("/rewriteTo/")
            self.needs.add(("get", self.place(unquote(source.rpartition("/o/")[2]))))
            self.needs.add(("create", self.place(unquote(target.rpartition("/o/")[2]))))
        elif gate.command in ("POST", "PUT") or path.startswith("/upload/"):
            # An upload, or the end of one: who began it may.
            self.needs.add(("create", self.place(re.findall(rb'"name": ?"([^"]+)"', gate.body)[0].decode())))
        elif path.endswith("/o"):
            self.needs.add(("list", self.place(parse_qs(query).get("prefix", [""])[0])))
        else:
            permission = {"GET": "get", "DELETE": "delete"}[gate.command]
            self.needs.add((permission, self.place(unquote(path.rpartition("/o/")[2]))))
        return False

    def place(self, name: str) -> str:
        return name.partition("/")[0]

    def taken(self) -> Needs:
        # Once for each bucket, to tell a missing object from a missing bucket; a refusal is taken for an answer.
        needs, self.needs = self.needs - {("list", "")}, set()
        return needs


@pytest.fixture
def recorder(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    for front in served(Front(emulator)):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        one = Recorder()
        front.faults.append(one)
        yield one


def run(recorder: Recorder, argv: list[str]) -> tuple[Needs, Needs]:
    """What launcher and workers needed: what `headrace` does, in its two halves."""
    options = parse_flags(argv)
    request = parse_request(options, "run")
    prepared = prepare(request)
    standing = examine_output(prepared, overwrite=request.overwrite)
    job = claim_output(prepared, standing, overwrite=request.overwrite)
    launcher = recorder.taken()
    launch(job, open_pipeline(options))
    return launcher, recorder.taken()


def told() -> tuple[Needs, Needs]:
    found: tuple[Needs, Needs] = (set(), set())
    for permission, *places in re.findall(
        r"^\| `storage\.objects\.(\w+)` \|([^|]*)\|([^|]*)\|", PAGE.read_text(), re.M
    ):
        for needs, listed in zip(found, places, strict=True):
            needs.update((permission, place.strip()) for place in listed.split(","))
    return found


def test_the_page_names_what_jobs_need(recorder: Recorder, bucket: str) -> None:
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [20] * 2)
    argv = [f"--model={bucket}/model", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]
    recorder.taken()
    launcher, worker = run(recorder, argv)
    put_table(f"{bucket}/in/z.parquet", rows(40, 5))
    recorder.taken()
    for more in ([], ["--keep=id", "--overwrite"]):
        also = run(recorder, [*argv, *more])
        launcher, worker = launcher | also[0], worker | also[1]
    assert told() == (launcher, worker)

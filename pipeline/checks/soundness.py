"""Reads a finished job's output back, and compares it with its manifest, its record and its inputs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.transforms.bounded_json import NotJson, parse_json_object
from headrace.transforms.errors import HeadraceError, NotParquet, ObjectNotFound, OutputIncomplete
from headrace.transforms.jobs.job import ASIDE, JOB_RECORD, MANIFEST_FOLDER, SUCCESS, fingerprint_of, options_as_begun
from headrace.transforms.output.claims import claim_number, mark_claim, newest_claim, read_claim
from headrace.transforms.output.failed_list import is_failed_list
from headrace.transforms.output.manifest import outputs_digest
from headrace.transforms.parquet.reader import read_footer
from headrace.transforms.shards.deleted_rows import deleted_count
from headrace.transforms.shards.shard import output_name, parse_output_name, sources_sha256
from headrace.transforms.steps.row_filtering import FILTERED
from headrace.transforms.storage import ObjectRef, Store, StoreOptions, open_store
from headrace.transforms.storage.store import HIDDEN

_FILES_AT_ONCE = 8
_READ_BYTES = 8 << 20
_MOST_EXAMPLES = 20

CHECKS = {
    "record": "job.json, _SUCCESS and the manifest belong to one job",
    "files": "every file of the manifest is there, and no other",
    "bytes": "size and checksum of every file",
    "identity": "every file's own metadata names its shard and its job",
    "rows": "every file holds the rows that the manifest counts",
    "inputs": "every row of every input is in exactly one file, in order",
    "dead letters": "every row left out is in the dead letters, as it was written",
    "sample": "batches computed again give the same predictions",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """`check` is one of `CHECKS`; `where` an object's URI."""

    check: str
    where: str
    expected: str
    found: str


@dataclass
class Verdict:
    """`looked_at` counts objects by check; `notes` are worth reading, and no fault of the output."""

    output: str
    checked: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    bad_rows: int = 0
    filtered_rows: int = 0

    def add(self, check: str, where: str, expected: object, found: object) -> None:
        self.problems.append(Problem(check, where, str(expected), str(found)))

    def expect(self, check: str, where: str, what: str, expected: object, found: object) -> None:
        if expected != found:
            self.add(check, where, f"{what} {expected}", f"{what} {found}")


def verify(output: str, storage: StoreOptions) -> tuple[Verdict, dict[str, Any], pa.Table]:
    """The verdict, the job's record, and the manifest. Reads every file of the output whole, a few at a time.

    Raises `OutputIncomplete` where there is no finished job.
    """
    storage = options_as_begun(storage, _record(open_store(output, storage), output))
    store = open_store(output, storage)
    there = {ref.uri.removeprefix(f"{output}/"): ref for ref in store.list(f"{output}/")}
    if missing := [name for name in (JOB_RECORD, SUCCESS) if name not in there]:
        lists = (f"failed shards, listed in {name}" for name in there if is_failed_list(name))
        raise OutputIncomplete(
            f"{output} holds no finished job: {missing[0]} is missing",
            expected=f"{JOB_RECORD} and {SUCCESS}",
            found=", ".join([f"{len(there)} objects", *lists]),
            cure="Run the job's command again to finish it, or look at the spelling of --output",
        )
    verdict = Verdict(output)
    record, manifest = _read_records(verdict, store, there)
    rows = manifest.to_pylist()
    _check_presence(verdict, there, rows)
    _check_inputs(verdict, store, list(input_spans(rows)), limited=record.get("limit") is not None)
    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="headrace-verify") as threads:
        present = [row for row in rows if row["output"] in there]
        for problems in threads.map(lambda row: _check_file(store, there[row["output"]], row, record), present):
            verdict.problems.extend(problems)
    for check in ("bytes", "identity", "rows"):
        verdict.checked[check] = len(present)
    _check_dead_letters(verdict, storage, rows)
    verdict.rows = sum(row["rows"] for row in rows)
    verdict.bad_rows = sum(row.get("bad_rows") or 0 for row in rows)
    verdict.filtered_rows = sum(row.get("filtered_rows") or 0 for row in rows)
    return verdict, record, manifest


def _read_records(verdict: Verdict, store: Store, there: dict[str, ObjectRef]) -> tuple[dict[str, Any], pa.Table]:
    record = _json(store, there[JOB_RECORD])
    mark = _json(store, there[SUCCESS])
    try:
        fingerprint, parts = str(record["fingerprint"]), [str(part) for part in mark["manifest"]]
        said = fingerprint_of(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputIncomplete(
            f"The records of {verdict.output} are damaged",
            expected="a fingerprint and models in job.json, and the manifest's parts in _SUCCESS",
            found=f"{type(error).__name__}: {error}",
            cure="Run the job's command again with --overwrite",
        ) from error
    done = there[SUCCESS].uri
    verdict.expect("record", there[JOB_RECORD].uri, "fingerprint of its fields", fingerprint, said)
    verdict.expect("record", done, "fingerprint", fingerprint, mark.get("fingerprint"))
    tables = []
    for part in parts:
        if part not in there or not part.startswith(f"{MANIFEST_FOLDER}/"):
            raise OutputIncomplete(
                f"{verdict.output}/{part} is missing, a part of the manifest",
                cure="Run the job's command again: it writes the manifest again",
            )
        data = store.read(there[part])
        digest = hashlib.sha256(data).hexdigest()[:16]
        if f"-{digest}." not in part:
            verdict.add("record", there[part].uri, "a content of the digest in its name", digest)
        try:
            tables.append(pq.read_table(pa.BufferReader(data)))
        except (pa.ArrowException, OSError) as error:
            raise NotParquet(f"{there[part].uri} cannot be read", found=str(error)) from error
        kept = _kept_job(there[part], tables[-1])
        verdict.expect("record", there[part].uri, "fingerprint", fingerprint, kept.get("fingerprint"))
    verdict.checked["record"] = 2 + len(parts)
    manifest = pa.concat_tables(tables)
    verdict.expect("record", done, "shards", manifest.num_rows, mark.get("shards"))
    if "digest" in mark:  # earlier versions wrote none
        digest = outputs_digest(verdict.output, store, parts)
        verdict.expect("record", done, "digest of the outputs' names and versions", digest, mark["digest"])
    newest = newest_claim(store, verdict.output, max(map(claim_number, there)))
    if newest > mark_claim(store.read(there[SUCCESS])):
        claim = read_claim(store, verdict.output, newest)
        verdict.notes.append(f"Another run has claimed this folder since it was finished: {claim.describe()}.")
    return record, manifest


def _record(store: Store, output: str) -> dict[str, Any] | None:
    try:
        return _json(store, store.stat(f"{output}/{JOB_RECORD}"))
    except ObjectNotFound:
        return None


def _json(store: Store, ref: ObjectRef) -> dict[str, Any]:
    try:
        return parse_json_object(store.read(ref))
    except NotJson as error:
        raise OutputIncomplete(f"{ref.uri} is damaged", expected="a JSON object", found=str(error)) from error


def _kept_job(part: ObjectRef, table: pa.Table) -> dict[str, Any]:
    try:
        return parse_json_object((table.schema.metadata or {}).get(b"headrace.job", b"{}"))
    except NotJson as error:
        raise OutputIncomplete(f"{part.uri} holds a damaged record of its job", found=str(error)) from error


def _check_presence(verdict: Verdict, there: dict[str, ObjectRef], rows: list[dict[str, Any]]) -> None:
    named = Counter(row["output"] for row in rows)
    verdict.checked["files"] = len(named)
    for name, times in named.items():
        if times > 1:
            verdict.add("files", f"{verdict.output}/{name}", "one line in the manifest", f"{times}")
        if name not in there:
            verdict.add("files", f"{verdict.output}/{name}", "a file", "nothing")
    for name in there:
        if name not in named and name.endswith(".parquet") and not HIDDEN.search(f"/{name}"):
            verdict.add("files", f"{verdict.output}/{name}", "no file that the manifest does not name", "one")


def input_spans(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The manifest's rows, one for each input of an output: `before` are the output's rows that come before its own, `part` is
    its number.
    """
    for row in rows:
        before = 0
        for number, part in enumerate(row.get("joined") or [row]):
            yield {**row, **part, "before": before, "part": number}
            before += rows_written(part)


def rows_written(row: dict[str, Any]) -> int:
    """The input's rows that are in the output. Manifests of earlier versions do not count the others."""
    return int(row["rows"] - (row.get("bad_rows") or 0) - (row.get("filtered_rows") or 0))


def _check_inputs(verdict: Verdict, outputs: Store, rows: list[dict[str, Any]], *, limited: bool) -> None:
    """Within an input, spans follow one another from 0 to its end. A version that is gone has only its spans to show."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in rows:
        spans.setdefault((row["input"], row["input_version"]), []).append((row["first_row"], row["rows"]))
    of_one = Counter(uri for uri, _ in spans)
    for uri, versions in of_one.items():
        if versions > 1:
            verdict.add("inputs", uri, "one version", f"{versions} versions")
    verdict.checked["inputs"] = len(spans)
    for (uri, _), found in spans.items():
        at = 0
        for first, count in sorted(found):
            if first != at:
                verdict.add("inputs", uri, f"a file that begins at row {at}", f"one that begins at row {first}")
            at = first + count
    sizes = {row["input"]: row["input_bytes"] for row in rows}
    gone = []
    store = open_store(rows[0]["input"], outputs.options) if rows else outputs

    def footer_rows(key: tuple[str, str]) -> int | None:
        source = ObjectRef(key[0], sizes[key[0]], key[1])
        try:
            return read_footer(store, source).rows - deleted_count(source.version)
        except HeadraceError:
            return None

    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        for (uri, version), total in zip(spans, threads.map(footer_rows, spans), strict=True):
            if total is None:
                gone.append(uri)
                continue
            end = max(first + count for first, count in spans[uri, version])
            if end != total and not limited:
                verdict.add("inputs", uri, f"rows up to {total}", f"rows up to {end}")
    if gone:
        verdict.notes.append(
            f"{len(gone)} inputs cannot be read any more in the version that was predicted, as {gone[0]}: that their last "
            "row is there rests on the manifest alone."
        )


def _check_file(store: Store, ref: ObjectRef, row: dict[str, Any], record: dict[str, Any]) -> list[Problem]:
    verdict = Verdict("")
    verdict.expect("bytes", ref.uri, "bytes", row["output_bytes"], ref.size)
    try:
        if row["output_crc32c"] is not None:
            verdict.expect("bytes", ref.uri, "CRC-32C", f"{row['output_crc32c']:08x}", f"{_checksum(store, ref):08x}")
        footer = read_footer(store, ref)
        _read_pages(store, ref)
    except (HeadraceError, pa.ArrowException, OSError) as error:
        verdict.add("bytes", ref.uri, "a whole Parquet file", error)
        return verdict.problems
    said = {key.decode(): value.decode(errors="replace") for key, value in footer.key_values.items()}
    wanted = {
        "fingerprint": record["fingerprint"],
        "input": row["input"],
        "input_version": row["input_version"],
        "first_row": str(row["first_row"]),
        "rows": str(row["rows"]),
    }
    sources = [ObjectRef(span["input"], span["input_bytes"], span["input_version"]) for span in input_spans([row])]
    if len(sources) > 1:
        wanted["joined"] = sources_sha256(*sources)
    for key, value in wanted.items():
        verdict.expect("identity", ref.uri, key, value, said.get(f"headrace.{key}"))
    made, (first, *others) = parse_output_name(row["output"]), sources
    span = row["first_row"], row["rows"]
    if made is None or row["output"] != output_name(made.stem, first, *span, record["fingerprint"], others):
        verdict.add("identity", ref.uri, "the name that input, rows and job lead to", row["output"])
    verdict.expect("rows", ref.uri, "rows", rows_written(row), footer.rows)
    left_out = str(row.get("filtered_rows") or 0)
    verdict.expect("rows", ref.uri, "filtered rows", left_out, said.get(FILTERED, "0"))
    if record.get("where") is None and left_out != "0":
        verdict.add("rows", ref.uri, "every row: the job has no --where", f"{left_out} filtered rows")
    return verdict.problems


def _checksum(store: Store, ref: ObjectRef) -> int:
    value = 0
    for part in _parts(store, ref):
        value = crc32c.crc32c(part, value)
    return int(value)


def _sha256(store: Store, ref: ObjectRef) -> str:
    digest = hashlib.sha256()
    for part in _parts(store, ref):
        digest.update(part)
    return digest.hexdigest()


def _parts(store: Store, ref: ObjectRef) -> Iterator[memoryview]:
    """The object's bytes, in one buffer that each part takes from the last."""
    buffer = memoryview(bytearray(min(_READ_BYTES, max(1, ref.size))))
    for start in range(0, ref.size, _READ_BYTES):
        part = buffer[: min(_READ_BYTES, ref.size - start)]
        store.read_into(ref, start, [part])
        yield part


def _read_pages(store: Store, ref: ObjectRef) -> None:
    """Checks every page against its own checksum. It finds a flipped bit where the store knows no checksum of the object."""
    with (
        store.open_arrow(ref) as source,
        pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True) as file,
    ):
        for _ in file.iter_batches(use_threads=False):
            continue


def _check_dead_letters(verdict: Verdict, storage: StoreOptions, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        uri, bad = row.get("dead_letters"), row.get("bad_rows") or 0
        if not bad and not uri:
            continue
        verdict.checked["dead letters"] += 1
        name = f"{verdict.output}/{row['output']}"
        if not uri:
            verdict.add("dead letters", name, f"dead letters of {bad} rows", "none named")
            continue
        try:
            store = open_store(uri, storage)
            ref = store.stat(uri)
            digest = _sha256(store, ref)[:16]
            table = pq.read_table(store.open_arrow(ref), columns=["headrace_input", "headrace_row"])
            found = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        except (HeadraceError, pa.ArrowException, OSError, KeyError) as error:
            verdict.add("dead letters", uri, f"{bad} rows of {name}", error)
            continue
        if not uri.endswith((f"-{digest}{ASIDE}", f"-{digest}.parquet")):
            verdict.add("dead letters", uri, "a content of the digest in its name", digest)
        for span in input_spans([row]):
            bad, within = span.get("bad_rows") or 0, range(span["first_row"], span["first_row"] + span["rows"])
            numbers = [number for source, number in found if source == span["input"]]
            if len(set(numbers)) != bad or any(number not in within for number in numbers):
                wanted = f"{bad} rows of {span['input']} between {within.start} and {within.stop}"
                verdict.add("dead letters", uri, wanted, f"{len(numbers)} rows")
        if len(found) != (row.get("bad_rows") or 0):
            verdict.add("dead letters", uri, f"{row['bad_rows']} rows of {name}", f"{len(found)} rows")


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """What --json prints."""
    wrong = Counter(problem.check for problem in verdict.problems)
    checks = {check: {"looked_at": verdict.checked[check], "wrong": wrong[check]} for check in CHECKS}
    return {
        "output": verdict.output,
        "sound": not verdict.problems,
        "rows": verdict.rows,
        "bad_rows": verdict.bad_rows,
        "filtered_rows": verdict.filtered_rows,
        "checks": checks,
        "problems": [asdict(problem) for problem in verdict.problems],
        "notes": verdict.notes,
    }


def verdict_lines(verdict: Verdict) -> list[str]:
    wrong = Counter(problem.check for problem in verdict.problems)
    lines = [
        f"Output   {verdict.output}",
        f"Rows     {verdict.rows:,}, {verdict.bad_rows:,} of them in dead letters"
        + (f", {verdict.filtered_rows:,} left out by --where" if verdict.filtered_rows else ""),
        "",
    ]
    shown = [(check, what) for check, what in CHECKS.items() if verdict.checked[check] or wrong[check]]
    width = max(len(check) for check, _ in shown)
    for check, what in shown:
        state = "ok" if not wrong[check] else f"{wrong[check]} WRONG"
        lines.append(f"{check:<{width}}  {verdict.checked[check]:>9,}  {state:<8}  {what}")
    for problem in verdict.problems[:_MOST_EXAMPLES]:
        lines += ["", problem.where, f"  expected {problem.expected}", f"  found    {problem.found}"]
    if len(verdict.problems) > _MOST_EXAMPLES:
        lines += ["", f"and {len(verdict.problems) - _MOST_EXAMPLES:,} more"]
    for note in verdict.notes:
        lines += ["", f"Note: {note}"]
    lines += ["", "Sound." if not verdict.problems else "NOT sound: run the job again into another --output."]
    return lines

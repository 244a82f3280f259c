"""What an earlier job wrote into the output folder, for `--overwrite` to remove."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headrace.transforms.errors import OutputConflict
from headrace.transforms.jobs.job import DEAD_LETTERS_FOLDER, JOB_RECORD, Job
from headrace.transforms.output.dead_letters import dead_letters_of
from headrace.transforms.output.manifest import is_manifest, part_claim
from headrace.transforms.parquet.reader import read_footer
from headrace.transforms.shards.shard import named_output, parse_output_name, source_digest
from headrace.transforms.storage import ObjectRef, Store, open_store


def objects_of_earlier_job(
    job: Job, kept: dict[str, Any], store: Store, number: int
) -> Iterator[tuple[Store, ObjectRef]]:
    folder = kept.get("dead_letters", f"{job.output}/{DEAD_LETTERS_FOLDER}")
    letters = open_store(folder, job.storage)
    for ref in dead_letters_of(job.output, letters, folder):
        yield letters, ref
    for ref in written_by_headrace(store, job.output, kept, number):
        yield store, ref


def written_by_headrace(store: Store, output: str, kept: dict[str, Any], number: int) -> Iterator[ObjectRef]:
    """What the folder's job wrote, and what another run left that ran at the same time; the record comes last.

    Raises `OutputConflict` for a file that only looks like an output.
    """
    mine, record = str(kept["fingerprint"])[:8], None
    for ref in store.list(f"{output}/"):
        name = ref.uri.removeprefix(f"{output}/")
        made = parse_output_name(name)
        if made is not None and made.job != mine and not _says_its_name(store, ref, name, made.stem):
            raise OutputConflict(
                f"{ref.uri} looks like an output of headrace, and is none by its own account",
                expected="Parquet metadata that lead to that name",
                cure="Move it away, or name another --output",
            )
        if made is not None or (is_manifest(name) and part_claim(name) < number):
            yield ref
        elif name == JOB_RECORD:
            record = ref
    if record is not None:
        yield record


def _says_its_name(store: Store, ref: ObjectRef, name: str, stem: str) -> bool:
    """Whether the file's own metadata give its name."""
    said = read_footer(store, ref).key_values
    try:
        uri, version, first_row, rows, fingerprint = (
            said[f"headrace.{key}".encode()].decode()
            for key in ("input", "input_version", "first_row", "rows", "fingerprint")
        )
        digest = int(said.get(b"headrace.joined", b"")[:12] or f"{source_digest(ObjectRef(uri, 0, version)):x}", 16)
        return name == named_output(stem, int(first_row), int(rows), fingerprint, digest)
    except (KeyError, ValueError):
        return False

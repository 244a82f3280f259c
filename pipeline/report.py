"""What a person reads: the plan before, the summary after, a model's signatures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.launch import Done
from pipeline.preflight import Prepared
from pipeline.standing import Standing
from transforms.models.ref import ModelRef
from transforms.models.spec import ModelSpec, TensorSpec
from transforms.shard import Shard
from transforms.storage.base import public_uri


def plan_text(prepared: Prepared, standing: Standing, shards: Iterable[Shard]) -> str:
    job, spec = prepared.job, prepared.spec
    count = rows = size = done = 0
    for shard in shards:
        count, rows, size = count + 1, rows + shard.rows, size + shard.nbytes
        done += shard.output in standing.outputs
    signature = spec.signatures[job.signature]
    listing = prepared.listing
    passed_over = (
        f" ({listing.hidden} hidden and {listing.empty} empty passed over)" if listing.hidden + listing.empty else ""
    )
    features = dict(job.features)
    predictions = dict(job.predictions)
    lines = [
        f"Model    {public_uri(job.model.uri)}",
        f"         {spec.format}, signature {job.signature}, {spec.nbytes:,} bytes to stream ({spec.parameters:,} parameters)",
        f"Input    {len(listing.files):,} files{passed_over}, {count:,} shards, {rows:,} rows, {size:,} bytes of Parquet",
        f"Output   {job.output}",
        *([f"Limit    the first {job.limit:,} rows only"] if job.limit is not None else []),
        f"Batches  of {job.batch_rows:,} rows ({job.batch_rule})",
        "",
        *table(
            ("column", "type", "", "tensor", "dtype", "shape"),
            [
                (column, str(prepared.schema.field(column).type), "->", name, *_tensor(spec_of))
                for name, spec_of in signature.inputs.items()
                for column in features[name]
            ]
            + [
                (
                    predictions[name],
                    str(prepared.columns.output_schema.field(predictions[name]).type),
                    "<-",
                    name,
                    *_tensor(out),
                )
                for name, out in signature.outputs.items()
            ]
            + [(name, str(prepared.schema.field(name).type), "=", "kept", "", "") for name in job.keep],
        ),
    ]
    if standing.complete:
        lines += ["", "Everything is done: the same command would compute nothing."]
    elif done:
        lines += ["", f"{done:,} of {count:,} shards stand in the output already and would not be computed again."]
    return "\n".join(lines)


def inspect_text(ref: ModelRef, spec: ModelSpec) -> str:
    lines = [
        f"{ref.uri}",
        f"{spec.format}, {spec.parameters:,} parameters, {spec.nbytes:,} bytes to stream",
        f"{len(ref.objects)} objects of {sum(part.size for part in ref.objects):,} bytes",
    ]
    for signature in spec.signatures.values():
        rows = [("input", name, *_tensor(tensor)) for name, tensor in signature.inputs.items()]
        rows += [("output", name, *_tensor(tensor)) for name, tensor in signature.outputs.items()]
        lines += ["", f"signature {signature.name}", *table(("", "tensor", "dtype", "shape"), rows)]
    return "\n".join(lines)


def summary_text(prepared: Prepared, done: Done, seconds: float) -> str:
    job, found = prepared.job, done.rows - done.computed
    lines = [
        f"Predictions of {done.rows:,} rows lie in {job.output}",
        f"{done.computed:,} rows computed in {seconds:.1f} s, {found:,} rows found done, {done.shards:,} shards",
    ]
    if job.limit is not None:
        lines.append(f"A trial: only the first {job.limit:,} rows of the plan (--limit)")
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]


def _tensor(spec: TensorSpec) -> tuple[str, str]:
    if spec.shape is None:
        return spec.dtype, "any shape"
    return (
        spec.dtype,
        f"[{', '.join('batch' if i == 0 and d is None else str(d or '?') for i, d in enumerate(spec.shape))}]",
    )

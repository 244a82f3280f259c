"""What a person reads: the plan before, the summary after, a model's signatures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pipeline.launch import Done
from pipeline.preflight import Prepared
from pipeline.standing import Standing
from transforms.job import JobModel
from transforms.models.ref import ModelRef
from transforms.models.spec import ModelSpec, TensorSpec
from transforms.shard import Shard
from transforms.storage.base import public_uri


def plan_text(prepared: Prepared, standing: Standing, shards: Iterable[Shard]) -> str:
    job, inputs, done = prepared.job, prepared.inputs, standing.done
    count = rows = size = 0
    for shard in shards:
        count, rows, size = count + 1, rows + shard.rows, size + shard.nbytes
    hidden, empty = inputs.passed.hidden, inputs.passed.empty
    passed_over = f" ({hidden} hidden and {empty} empty passed over)" if hidden + empty else ""
    around = [function.name if function else "" for function in (job.preprocess, job.postprocess)]
    around.insert(1, "the models" if len(job.models) > 1 else "the model")
    lines = [
        *(line for model, spec in zip(job.models, prepared.specs, strict=True) for line in _model_lines(model, spec)),
        f"Input    {inputs.files:,} files{passed_over}, {count:,} shards, {rows:,} rows, {size:,} bytes of Parquet",
        f"Output   {job.output}",
        *([f"Limit    the first {job.limit:,} rows only"] if job.limit is not None else []),
        f"Batches  of {job.batch_rows:,} rows ({job.batch_rule})",
        *([f"Bad rows up to {job.on_error.most}, to {job.on_error.dead_letters}"] if job.on_error.dead_letters else []),
        *([f"Around   {', then '.join(filter(None, around))}"] if job.preprocess or job.postprocess else []),
        "",
        *table(("column", "type", "", "tensor", "dtype", "shape"), list(_mapping_rows(prepared))),
    ]
    if standing.complete:
        lines += ["", "Everything is done: the same command would compute nothing."]
    elif done:
        lines += ["", f"{done:,} of {count:,} shards stand in the output already and would not be computed again."]
    return "\n".join(lines)


def _model_lines(model: JobModel, spec: ModelSpec) -> list[str]:
    name = f"{model.columns.name}: " if model.columns.name else ""
    size = f"{spec.nbytes:,} bytes to stream ({spec.parameters:,} parameters)"
    return [
        f"Model    {name}{public_uri(model.ref.uri)}",
        f"         {spec.format}, signature {model.signature}, {size}",
    ]


def _mapping_rows(prepared: Prepared) -> Iterator[tuple[str, ...]]:
    plan = prepared.columns
    for model, part in zip(prepared.job.models, plan.models, strict=True):
        prefix = f"{model.columns.name}." if model.columns.name else ""
        for one in part.inputs.inputs:
            for column in one.columns:
                yield column.name, str(column.type), "->", prefix + one.spec.name, *_tensor(one.spec)
        for out in part.outputs.outputs:
            yield out.field.name, str(out.field.type), "<-", prefix + out.spec.name, *_tensor(out.spec)
    for name in prepared.job.keep:
        yield name, str(plan.output_schema.field(name).type), "=", "kept", "", ""


def inspect_text(ref: ModelRef, spec: ModelSpec) -> str:
    lines = [
        public_uri(ref.uri),
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
        f"Predictions of {done.rows - done.bad_rows:,} rows lie in {job.output}",
        f"{done.computed:,} rows computed in {seconds:.1f} s, {found:,} rows found done, {done.shards:,} shards",
    ]
    if done.bad_rows:
        lines.insert(1, f"{done.bad_rows:,} rows could not be predicted and lie in {job.on_error.dead_letters}")
    if done.retries:
        lines.append(f"{done.retries:,} requests to a store were tried again")
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

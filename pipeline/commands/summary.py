"""What a command prints on standard output: the plan before, the summary after, and inspected models and inputs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from headrace.transforms.columns.plan import of_whole_batch, varying_batch
from headrace.transforms.columns.wording import counted, lists_taken
from headrace.transforms.container_limits import usable_memory
from headrace.transforms.jobs.input_files import PassedOver
from headrace.transforms.jobs.job import Job
from headrace.transforms.models.ref import ModelRef
from headrace.transforms.models.spec import (
    GRAPH_FACTOR,
    LARGE_GRAPH,
    ExampleFormat,
    ModelSpec,
    Operations,
    Signature,
    TensorSpec,
)
from headrace.transforms.shards.shard import Shard
from headrace.transforms.storage.store import public_uri

from ..checks.column_links import Link, link_columns
from ..checks.inspection import Inspection
from ..checks.output_folder import OutputState
from ..checks.preflight import Prepared
from ..checks.report_place import report_line, report_written
from ..runners.dataflow import memory_nbytes, min_ram_gb
from ..runners.graph import LOCAL_SHARD_BYTES
from ..runners.launch import Done
from ..terminal.answer import Answer
from ..terminal.tables import WIDTH, table, tensor_cells, wrapped
from .link_table import drawn


def passed_over(passed: PassedOver) -> list[str]:
    """Files that match --input but are not read, where a user may miss their rows: one sentence for each kind."""
    said = []
    if passed.empty:  # as a writer leaves them that was stopped
        said.append(f"Files of zero bytes passed over: {passed.empty:,}, the first of them {passed.first_empty}")
    if passed.others:
        said.append(f"Not files, and so passed over: {passed.others:,}. The first of them: {passed.first_other}")
    return said


def little_memory(prepared: Prepared) -> str:
    """For a job of this process: empty, or that its models are larger than the memory that the process may use."""
    needed, usable = sum(spec.nbytes for spec in prepared.specs), usable_memory()
    if needed < usable:
        return ""
    return (
        f"The model takes {needed:,} bytes of memory, and this process may use {usable:,}: the system may stop it. "
        "Raise the container's limit, or use a larger machine"
    )


def travelling_secrets(job: Job, runner: str | None) -> list[str]:
    """A sentence where a model's address is signed, or has a password, and crosses to workers elsewhere."""
    refs = [model.ref for model in job.models]
    uris = [uri for ref in refs for uri in (ref.uri, ref.weights, *(part.uri for part in ref.objects))]
    named = sorted({public_uri(uri) for uri in uris if uri and uri != public_uri(uri)})
    if runner is None or not named:
        return []
    said = (
        f"The signature or password in the address of {named[0]} travels in the job's description to {runner}, since its "
        "workers need it. Whoever may see the job there can read the model for as long as it is valid. To keep it here, copy "
        "the model to a bucket that the workers' own identity may read, and name that."
    )
    return [said]


def report_plan(prepared: Prepared, state: OutputState, shards: Iterable[Shard], runner: str | None = None) -> Answer:
    """`runner` is where the job is to run, None for this process."""
    job, inputs = prepared.job, prepared.inputs
    count = rows = size = 0
    for shard in shards:
        count, rows, size = count + 1, rows + shard.rows, size + shard.nbytes
    hidden, empty = inputs.passed.hidden, inputs.passed.empty
    elements = count * LOCAL_SHARD_BYTES if runner is None else 0
    large = count >= _MANY_SHARDS and elements
    memory_gb = min_ram_gb(memory_nbytes(prepared.specs), elements)
    graphs = sum(spec.graph_memory for spec in prepared.specs)
    signatures = [spec.signatures[model.signature] for spec, model in zip(prepared.specs, job.models, strict=True)]
    chosen = [(signature, model.columns) for signature, model in zip(signatures, job.models, strict=True)]
    links = link_columns(prepared.seen, chosen, job.keep)
    counts = {"shards": count, "rows": rows, "bytes": size}
    document = _plan_document(prepared, state, counts, memory_gb, runner)
    document["columns"] = [link.fields() for link in links]
    models, notes = document["models"], document["notes"]
    functions = [document["preprocess"], document["postprocess"]]
    aside = f" ({hidden} hidden and {empty} empty passed over)" if hidden + empty else ""
    around = [functions[0], "the models" if len(models) > 1 else "the model", functions[1]]
    lines = [
        *(line for model in models for line in _model_lines(model)),
        *([f"Input    {inputs.table}"] if inputs.table else []),
        f"{'Input    ' if inputs.table is None else ' ' * 9}{counted(inputs.files, 'file')}{aside}",
        *(f"         {said}" for said in passed_over(inputs.passed)),
        f"         {counted(count, 'shard')}, {counted(rows, 'row')}, {counted(size, 'byte')} of Parquet",
        f"Output   {job.output}",
        *([f"Limit    the first {counted(job.limit, 'row')} only"] if job.limit is not None else []),
        *wrapped("Batches", f"of {counted(job.batch_rows, 'row')} ({job.batch_rule})"),
        *wrapped(
            "Memory",
            f"{memory_gb} GB a worker: the weights, half of them again while they load, "
            + (f"{graphs:,} bytes ({GRAPH_FACTOR} times its own) for the graph, " if graphs else "")
            + (f"{elements:,} bytes for the shards, which Beam's local runner keeps in memory, " if large else "")
            + "3 GiB for all else",
        ),
        *([f"Bad rows up to {job.on_error.most}, to {job.on_error.dead_letters}"] if job.on_error.dead_letters else []),
        *([f"Bad rows fail their shard; up to {job.on_error.most_shards:,}"] if job.on_error.skip_shards else []),
        *(line for why in job.differs_from_run_to_run for line in wrapped("Note", f"{why}.")),
        *([f"Around   {', then '.join(filter(None, around))}"] if any(functions) else []),
        *(wrapped("Where", job.where) if job.where is not None else []),
        "",
        *_drawn(links, [(model["name"], signature.name) for model, signature in zip(models, signatures, strict=True)]),
    ]
    for note in notes:
        lines += ["", *textwrap.wrap(f"Note: {note}", WIDTH, break_long_words=False, break_on_hyphens=False)]
    if state.complete:
        lines += ["", "Everything is done: the same command would compute nothing."]
    elif state.done:
        done = f"{state.done:,} of {counted(count, 'shard')} {'is' if state.done == 1 else 'are'}"
        lines += ["", f"{done} in the output already and would not be computed again."]
    return Answer(lines, document)


def _plan_document(
    prepared: Prepared, state: OutputState, counts: dict[str, int], memory_gb: int, runner: str | None
) -> dict[str, Any]:
    """All but the columns. `counts` are of the input's shards, rows and bytes."""
    job, inputs = prepared.job, prepared.inputs
    models = [
        _model_document(model.ref, spec) | {"name": model.columns.name, "signature": model.signature}
        for model, spec in zip(job.models, prepared.specs, strict=True)
    ]
    functions = [function.name if function else None for function in (job.preprocess, job.postprocess)]
    return {
        "models": models,
        "input": {
            "files": inputs.files,
            "hidden": inputs.passed.hidden,
            "empty": inputs.passed.empty,
            "others": inputs.passed.others,
            **counts,
            "table": inputs.table and inputs.table.record(),
        },
        "output": job.output,
        "shards_found_done": state.done,
        "complete": state.complete,
        "limit": job.limit,
        "batch_rows": job.batch_rows,
        "batch_rule": job.batch_rule,
        "preprocess": functions[0],
        "postprocess": functions[1],
        "where": job.where,
        "dead_letters": job.on_error.dead_letters,
        "max_bad_rows": job.on_error.most if job.on_error.dead_letters else None,
        "max_failed_shards": job.on_error.most_shards if job.on_error.skip_shards else None,
        "memory_bytes_per_worker": memory_gb * 10**9,
        "notes": travelling_secrets(job, runner),
        "differs_from_run_to_run": job.differs_from_run_to_run,
    }


def report_inspection(inspection: Inspection) -> Answer:
    document: dict[str, Any] = {"models": [], "input": None, "columns": [link.fields() for link in inspection.links]}
    lines: list[str] = []
    for ref, spec, signature in inspection.models:
        document["models"].append(
            _model_document(ref, spec)
            | {
                "signature": signature,
                "objects": len(ref.objects),
                "object_bytes": sum(part.size for part in ref.objects),
                "signatures": {name: _signature_document(known, spec) for name, known in spec.signatures.items()},
                "functions": list(spec.functions),
            }
        )
        lines += ["", *_inspected_model_lines(ref, spec, signature if inspection.links else None)]
    if inspection.inputs is not None and inspection.first is not None and inspection.schema is not None:
        inputs, first = inspection.inputs, inspection.first
        document["input"] = {
            "files": inputs.files,
            "empty": inputs.passed.empty,
            "others": inputs.passed.others,
            "first": inputs.first.name,
            "first_rows": first.rows,
            "first_row_groups": len(first.row_group_rows),
            "columns": [{"name": field.name, "type": str(field.type)} for field in inspection.schema],
            "table": inputs.table and inputs.table.record(),
        }
        lines += [
            "",
            *([str(inputs.table)] if inputs.table else []),
            f"{inputs.files:,} files of Parquet; the first of them:" if inputs.files > 1 else "1 file of Parquet:",
            inputs.first.name,
        ]
        lines += passed_over(inputs.passed)
        groups = len(first.row_group_rows)
        lines += [f"{counted(first.rows, 'row')} in {counted(groups, 'row group')}", ""]
        if inspection.links:
            names = [inspection.links[0].model, *(link.model for link in inspection.links if link.kind == "feature")]
            names = list(dict.fromkeys(names)) if len(inspection.models) > 1 else [""]
            lines += _drawn(inspection.links, list(zip(names, (model[2] for model in inspection.models), strict=False)))
        else:
            lines += table(("column", "type"), [(field.name, str(field.type)) for field in inspection.schema])
            for _, spec, signature in inspection.models:
                if signature not in spec.signatures:
                    none = f"There is no signature {signature!r} to check these columns against"
                    lines += ["", f"{none}: name one with --signature."]
    return Answer(lines[lines[:1] == [""] :], document)


def report_summary(prepared: Prepared, done: Done, seconds: float) -> Answer:
    job, bad = prepared.job, done.bad_rows
    found = None if done.computed is None else done.rows - done.computed
    document = {
        "output": job.output,
        "rows": done.rows,
        "rows_computed": done.computed,
        "rows_found_done": found,
        "bad_rows": bad,
        "filtered_rows": done.filtered_rows,
        "dead_letters": job.on_error.dead_letters if bad else None,
        "shards": done.shards,
        "storage_retries": done.retries,
        "seconds": round(seconds, 3),
        "limit": job.limit,
        "differs_from_run_to_run": job.differs_from_run_to_run,
        "report": None,
    }
    lines = [
        f"Predictions of {counted(done.rows - bad - done.filtered_rows, 'row')} are in {job.output}",
        f"{counted(done.computed or 0, 'row')} computed in {seconds:.1f} s, {counted(found, 'row')} found done, "
        f"{counted(done.shards, 'shard')}"
        if found is not None
        else f"{counted(done.shards, 'shard')} in {seconds:.1f} s; how many of the rows were computed now is not known",
    ]
    if done.by_earlier_attempts:
        lines.append(f"{done.by_earlier_attempts:,} of the shards were committed by an earlier attempt of this job")
    if bad:
        are = "is" if bad == 1 else "are"
        lines.insert(1, f"{counted(bad, 'row')} could not be predicted and {are} in {job.on_error.dead_letters}")
    if job.where is not None:
        are = "is" if done.filtered_rows == 1 else "are"
        lines.insert(1, f"{counted(done.filtered_rows, 'row')} {are} left out: not {job.where}")
    lines += [f"{why}." for why in job.differs_from_run_to_run]
    if done.retries:
        were = "was" if done.retries == 1 else "were"
        lines.append(f"{counted(done.retries, 'request')} to a store {were} tried again")
    if job.limit is not None:
        lines.append(f"A trial: only the first {counted(job.limit, 'row')} of the plan (--limit)")
    if job.report is not None:
        written = report_written(job)
        document["report"] = public_uri(job.report) if written else None
        lines.append(report_line(job, written))
    return Answer(lines, document)


def report_nothing_to_do(prepared: Prepared, state: OutputState) -> Answer:
    output, limit = prepared.job.output, prepared.job.limit
    every = "the only shard is" if state.done == 1 else f"all {state.done:,} shards are"
    text = f"Nothing to do: {every} in {output}, and no input changed."
    return Answer([text], {"output": output, "rows_computed": 0, "shards": state.done, "limit": limit})


def _drawn(links: Sequence[Link], signatures: Sequence[tuple[str, str]]) -> list[str]:
    title = ", ".join(f"{name}: {signature}" if name else signature for name, signature in signatures)
    return drawn(links, f"signature{'s' * (len(signatures) > 1)} {title}")


def _model_lines(model: dict[str, Any]) -> Iterator[str]:
    name = f"{model['name']}: " if model["name"] else ""
    yield f"Model    {name}{model['uri']}"
    yield f"         {model['format']}, signature {model['signature']}"
    yield f"         {counted(model['bytes'], 'byte')} to stream, {counted(model['parameters'], 'parameter')}"
    yield from (f"         {name} {what}" for name, what in model.get("parts", {}).items())
    if model["graph_bytes"] >= LARGE_GRAPH:
        yield f"         {counted(model['graph_bytes'], 'byte')} of graph, with the constants that it holds"


def _model_document(ref: ModelRef, spec: ModelSpec) -> dict[str, Any]:
    counted = {"parameters": spec.parameters, "bytes": spec.nbytes, "graph_bytes": spec.graph_nbytes}
    parts = {"parts": dict(spec.parts)} if spec.parts else {}
    return {"uri": public_uri(ref.uri), "format": spec.format, "digest": ref.digest} | counted | parts


def _inspected_model_lines(ref: ModelRef, spec: ModelSpec, drawn_below: str | None) -> Iterator[str]:
    yield public_uri(ref.uri)
    yield f"{spec.format}, {counted(spec.parameters, 'parameter')}, {counted(spec.nbytes, 'byte')} to stream"
    yield f"{counted(len(ref.objects), 'object')} of {sum(part.size for part in ref.objects):,} bytes"
    yield from (f"{name} {what}" for name, what in spec.parts.items())
    for signature in spec.signatures.values():
        if signature.name != drawn_below:
            rows = [("input", name, *tensor_cells(tensor)) for name, tensor in signature.inputs.items()]
            constant = {name for name, tensor in varying_batch(signature)[1].items() if of_whole_batch(tensor)}
            rows += [
                ("output", name, dtype, f"{shape}, one value for the whole batch" if name in constant else shape)
                for name, tensor in signature.outputs.items()
                for dtype, shape in [tensor_cells(tensor)]
            ]
            kind = "function" if signature.name in spec.functions else "signature"
            yield from ("", f"{kind} {signature.name}", *table(("", "tensor", "dtype", "shape"), rows, WIDTH))
        yield from _example_lines(signature)
        yield from _operations_lines(spec, signature.name)
    if spec.functions:
        found = "no signature, but" if not (spec.signatures.keys() - set(spec.functions)) else "beside its signatures"
        called = f"--signature={spec.functions[0]}: {', '.join(spec.functions)}"
        yield from ("", *wrapped("", f"The model has {found} functions to call, as {called}"))
    elif not spec.signatures:
        text = "The model has no signature, and no function that was traced: nothing can be called."
        yield from ("", *wrapped("", f"{text} Export it with signatures=…"))


def _example_lines(signature: Signature) -> Iterator[str]:
    for name, tensor in signature.inputs.items():
        if tensor.example is not None:
            why = tensor.example.problem or f"--tf_example={name} makes them of columns"
            yield from wrapped("", f"{name} takes {tensor.example}; {why}")
        if tensor.composite is not None:
            yield from wrapped("", f"{name} takes {lists_taken(tensor)}")


def _example_document(example: ExampleFormat) -> dict[str, Any]:
    return asdict(example) | {
        "features": [asdict(feature) | {"shape": list(feature.shape)} for feature in example.features]
    }


# From this many shards on, the runner's memory for them deserves a line.
_MANY_SHARDS = 10_000
_OPERATIONS = {
    "random": "draws random numbers, so that predictions differ from run to run",
    "writes": "changes its own state, so that predictions depend on the rows before; a job needs --allow_stateful_model",
    "outside": "can reach files, the network or other processes; refused without --unsafe_model",
    "python": "calls Python functions, which ended with the process that exported it: it cannot be run",
    "unrunnable": "has operations that no CPU or GPU can run",
}


def _operations_lines(spec: ModelSpec, signature: str) -> Iterator[str]:
    found = spec.operations.get(signature, Operations())
    for kind, says in _OPERATIONS.items():
        if names := getattr(found, kind):
            yield from wrapped("", f"{signature} {says}: {', '.join(names)}")


def _signature_document(signature: Signature, spec: ModelSpec) -> dict[str, Any]:
    def specs(tensors: Iterable[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": None if tensor.shape is None else list(tensor.shape)}
            | ({} if tensor.example is None else {"example": _example_document(tensor.example)})
            | ({} if tensor.composite is None else {"kind": tensor.composite.kind})
            for tensor in tensors
        ]

    operations = asdict(spec.operations.get(signature.name, Operations()))
    return {
        "inputs": specs(signature.inputs.values()),
        "outputs": specs(signature.outputs.values()),
        "operations": {kind: list(names) for kind, names in operations.items()},
    }

"""Every error that headrace raises on purpose.

    HeadraceError
    ├── StorageError            a store could not do what was asked, for good
    │   ├── ObjectNotFound      no such bucket, folder or object
    │   ├── AlreadyExists       a create-only write found an object of that name
    │   ├── ObjectChanged       another generation than the pinned one
    │   ├── StoreUnavailable    no answer, after all retries
    │   └── AccessDenied        no credentials, or credentials without the permission
    ├── ModelError
    │   ├── NotAModel           nothing at the URI that headrace can load
    │   ├── CorruptModel        truncated, wrong checksum, or sizes that contradict each other
    │   ├── UnsupportedModel    an intact model with a part that cannot be streamed
    │   └── SignatureNotFound
    ├── DataError
    │   ├── NotParquet          not a Parquet file, or a truncated one
    │   ├── ColumnError         a column is missing, or its type or length does not fit
    │   └── NullFeature         a null where the model needs a value
    └── JobError
        ├── InvalidRequest      flags that are wrong or contradict each other
        │   └── InvalidInferenceArgs   arguments that a model handler does not take; a ValueError too
        ├── OutputConflict      the output folder holds another job's output
        ├── ClaimLost           another run has claimed the output folder since
        ├── OutputIncomplete    a shard of the plan lacks a result
        ├── WorkerMismatch      a worker has other versions than the launcher
        ├── TooManyBadRows      more rows cannot be predicted than --max_bad_rows lets go to dead letters
        ├── ShardsFailed        some shards failed, the others are done: --on_error=skip_shard
        └── TooManyFailedShards  more shards failed than --max_failed_shards allows, or all of them

Each carries what it is about, what was expected, what was found, and the fix (`cure`); `str()` is one paragraph of the four.
"""

from __future__ import annotations

import re
from functools import partial

from .printable import printable

# A user and a password, which may hold `/`, `?` or `#` as they are: what follows the colon is no port then.
LOGIN = re.compile(
    r"([a-zA-Z][\w+.-]{0,19}://)(?!arn:)[^\s/?#@:\[]*:(?:[^\s/?#]*|(?!\d*(?:[/?#\s]|$))(?:(?!://)[^\s@])*)@"
)
# A web address's user and query may be a password or a signature; quotes and brackets at its end are the text's around it.
_WEB_ADDRESS = re.compile(
    r"(https?://)(?:[^\s/?#]*@)?((?:(?!https?://)[^\s?#])*)(?:[?#](?:(?!https?://)\S)*?(?=['\")\]},.;:]*(?:\s|https?://|$)))?"
)
# A library's text of an error may have many lines; a runner passes only the first of ours on.
_LINES = re.compile(r"\s*\n\s*")


def row_span(first: int, end: int) -> str:
    """Rows from `first` (counted from 0) up to but without `end`, as errors name them: "rows 0-49", "row 7"."""
    return f"rows {first}-{end - 1}" if end > first + 1 else f"row {first}"


class HeadraceError(Exception):
    """Every error that headrace raises on purpose.

    `what` is a whole sentence naming the object; `expected`, `found` and `cure` are phrases and may be empty.
    The whole paragraph is the exception's one argument, because Beam rebuilds a worker's exception from that alone.
    Of web addresses it shows neither user nor query, of others no user that has a password; characters that a terminal
    would obey are escapes. `began` is true where a job had claimed its output folder before it failed.
    """

    began = False

    def __init__(self, what: str, *, expected: str = "", found: str = "", cure: str = "") -> None:
        what, expected, found, cure = (
            printable(_LINES.sub(" ", _WEB_ADDRESS.sub(r"\1\2", LOGIN.sub(r"\1", text))).strip())
            for text in (what, expected, found, cure)
        )
        parts = [_sentence(what)]
        if expected:
            parts.append(f"Expected: {expected.rstrip('.')}.")
        if found:
            parts.append(f"Found: {found.rstrip('.')}.")
        if cure:
            parts.append(_sentence(cure))
        super().__init__(" ".join(parts))
        self.what, self.expected, self.found, self.cure = what, expected, found, cure

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), expected=self.expected, found=self.found, cure=self.cure), (self.what,)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "']")) else f"{text}."


class StorageError(HeadraceError):
    """A store refused a request for good. What may pass by itself was retried first.

    Fix: the text names the object and shows the service's own answer. Most are a matter of the network, a quota or the
    store's configuration.
    """


class ObjectNotFound(StorageError):
    """The bucket, folder or object does not exist, or an `--input` matches nothing.

    Fix: check the spelling, and quote a glob to keep the shell from expanding it.
    """


class AlreadyExists(StorageError):
    """An object of that name already exists, and headrace never replaces one.

    Fix: another run wrote it meanwhile. Start the same command again: it continues from there.
    """


class ObjectChanged(StorageError):
    """The model or an input was replaced while the job ran: the object no longer has the version that the job pinned.

    Fix: start again, and do not change inputs or models while a job runs. Where inputs change between runs, use
    `--incremental`.
    """


class StoreUnavailable(StorageError):
    """A store did not answer, or answered that it is not available, after all retries.

    Fix: check the network and the store's status, then start the same command again. The exit code is 1.
    """


class AccessDenied(StorageError):
    """No credentials, or credentials without the permission.

    Fix: on your own machine, run `gcloud auth application-default login`. Elsewhere, grant the permission that the text names
    to the principal that it names. The page on security lists what a job needs.
    """


class ModelError(HeadraceError):
    """The model cannot be used as it is."""


class NotAModel(ModelError):
    """headrace finds no model that it can load at the URI.

    Fix: name the folder that holds `saved_model.pb`, the `.keras`, `.h5` or `.tflite` file, or a `config.json` with
    `--weights`. The text names what is there, or next to it.
    """


class CorruptModel(ModelError):
    """Truncated, a wrong checksum, or sizes that contradict each other.

    Fix: upload or export the model again.
    """


class UnsupportedModel(ModelError):
    """The model is intact, but a part of it cannot be streamed, or it needs your own class or permission to run its own code.

    Fix: the text names the part. Use `--custom_objects` for your own classes and `--unsafe_model` for a lambda that you trust,
    or export the model as a SavedModel.
    """


class SignatureNotFound(ModelError):
    """The model lacks a signature of that name.

    Fix: `headrace inspect --model=URI` lists them; `--signature=NAME` chooses one.
    """


class DataError(HeadraceError):
    """The data cannot be used as it is.

    `stage` is where a batch's way ended, while that is known: "preprocess", "features", "model", … `alike` are the rows of
    that batch which fail in the same way, from 0, and what is found in each, while that is known.
    """

    stage: str = ""
    alike: tuple[tuple[int, str], ...] = ()


class NotParquet(DataError):
    """Not a Parquet file, or a truncated or damaged one.

    Fix: write the file again, or leave it out of `--input`.
    """


class ColumnError(DataError):
    """A column is missing, or its type or length does not fit the model's input.

    Fix: name the column by `--feature TENSOR=COLUMN`, or convert its values by `--cast`, `--pad` or `--decode_image`. The
    text names the most similar columns.
    """


class NullFeature(DataError):
    """A null where the model needs a value.

    Fix: `--fill TENSOR=VALUE` replaces nulls, or `--on_error=dead_letter` leaves the row out and records the reason.
    """


class JobError(HeadraceError):
    """The job cannot be done as it was asked for."""


class InvalidRequest(JobError):
    """Flags that are wrong or contradict each other.

    Fix: the text names the flag, and the most similar one that exists.
    """


class InvalidInferenceArgs(InvalidRequest, ValueError):
    """`RunInference(…, inference_args=…)` with a model handler that takes none; a `ValueError`, as Beam's own handlers raise.

    Fix: leave `inference_args` out, and pass everything that the model reads as tensors or columns of the elements.
    """


class OutputConflict(JobError):
    """The output folder holds another job's output: of another model, mapping, input or plan.

    Fix: choose another `--output`. `--overwrite` replaces the other job's output; `--incremental` continues where only inputs
    changed. The text names what differs.
    """


class ClaimLost(JobError):
    """Another run claimed the output folder after this one began. This run did not touch that run's files.

    Fix: the text names the other run. Give each job an `--output` of its own, or start one only when the other has ended.
    """


class OutputIncomplete(JobError):
    """The job ended without a result for a shard of the plan.

    Fix: start the same command again: it computes only the missing shards.
    """


class WorkerMismatch(JobError):
    """A worker has other versions of TensorFlow, Keras, pyarrow, headrace or Python than the launcher.

    Fix: start the job from the image that the workers run (`--sdk_container_image`), or install the launcher's versions on
    them (`--requirements_file`).
    """


class TooManyBadRows(JobError):
    """More rows failed than `--max_bad_rows` allows.

    Fix: read `headrace_error` in the dead letters. Fix the data or the flags, or raise the limit.
    """


class ShardsFailed(JobError):
    """Some shards failed under `--on_error=skip_shard`. All others are done, and there is no `_SUCCESS`.

    `text` and `document` are the run's summary, as the command prints it and as `--json` does. They are empty if the list
    could not be read.

    Fix: the text names the list of failed shards, which has the reason of each. Fix these and start the same command again:
    it computes only the missing shards.
    """

    text: str = ""
    document: dict[str, object] | None = None


class TooManyFailedShards(JobError):
    """More shards failed under `--on_error=skip_shard` than `--max_failed_shards` allows, or no shard is done.

    Fix: look at the first reason; fix the data or the flags, or raise the bound.
    """

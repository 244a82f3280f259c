"""Every error that headrace raises on purpose.

    HeadraceError
    ├── StorageError            a store could not do what was asked, for good
    │   ├── ObjectNotFound      no such bucket, folder or object
    │   ├── AlreadyExists       a create-only write met an object that stands there
    │   ├── ObjectChanged       another generation than the pinned one
    │   ├── StoreUnavailable    no answer, however often it was asked
    │   └── AccessDenied        no credentials, or credentials without the permission
    ├── ModelError
    │   ├── NotAModel           the URI leads to nothing that headrace can load
    │   ├── CorruptModel        truncated, wrong checksum, or sizes that contradict each other
    │   ├── UnsupportedModel    a sound model with a part that cannot be streamed
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
        ├── OutputIncomplete    a shard of the plan is not accounted for
        ├── WorkerMismatch      a worker has other versions than the launcher
        └── TooManyBadRows      more rows cannot be predicted than --max_bad_rows lets go to dead letters

Each carries what it is about, what was expected, what was found, and the cure; `str()` is one paragraph of the four.
"""

from __future__ import annotations

import re

from .printable import printable

# A user and a password, which may hold `/`, `?` or `#` as they are: what follows the colon is no port then.
LOGIN = re.compile(
    r"([a-zA-Z][\w+.-]{0,19}://)(?!arn:)[^\s/?#@:\[]*:(?:[^\s/?#]*|(?!\d*(?:[/?#\s]|$))(?:(?!://)[^\s@])*)@"
)
# A web address's user and query may be a password or a signature; quotes and brackets at its end are the text's around it.
_WEB_ADDRESS = re.compile(
    r"(https?://)(?:[^\s/?#]*@)?((?:(?!https?://)[^\s?#])*)(?:[?#](?:(?!https?://)\S)*?(?=['\")\]},.;:]*(?:\s|https?://|$)))?"
)
# What libraries say of an error may have many lines; a runner hands on no more than the first of ours.
_LINES = re.compile(r"\s*\n\s*")


class HeadraceError(Exception):
    """Every error that headrace raises on purpose.

    `what` is a whole sentence naming the object; `expected`, `found` and `cure` are phrases and may be empty.
    The whole paragraph is the exception's one argument, since Beam raises a worker's exception anew from that alone.
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
        return _rebuild, (type(self), self.what, self.expected, self.found, self.cure)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "']")) else f"{text}."


def _rebuild(kind: type[HeadraceError], what: str, expected: str, found: str, cure: str) -> HeadraceError:
    return kind(what, expected=expected, found=found, cure=cure)


class StorageError(HeadraceError):
    """A store could not do what was asked, for good: what may pass was tried again before.

    Cure: the text names the object and the service's own answer; most are a network, quota or configuration of the store.
    """


class ObjectNotFound(StorageError):
    """No such bucket, folder or object; an `--input` that matches nothing.

    Cure: look at the spelling, and quote a glob, so that the shell does not expand it.
    """


class AlreadyExists(StorageError):
    """A create-only write met an object that stands there.

    Cure: another run wrote it meanwhile; start the same command again, which goes on from there.
    """


class ObjectChanged(StorageError):
    """An object is no longer at the version that was pinned: somebody replaced the model or an input while the job ran.

    Cure: start again; leave inputs and models alone while a job runs. `--incremental` where inputs are meant to change between
    runs.
    """


class StoreUnavailable(StorageError):
    """A store gave no answer, or none but that it cannot now, however often it was asked.

    Cure: look at the network and at the store's status; the same command later is right, so that its exit code is 1.
    """


class AccessDenied(StorageError):
    """No credentials, or credentials without the permission.

    Cure: `gcloud auth application-default login` on your own machine; else grant the named principal the named permission:
    the page on security lists what a job needs.
    """


class ModelError(HeadraceError):
    """The model cannot be used as it is."""


class NotAModel(ModelError):
    """The URI leads to nothing that headrace can load.

    Cure: name the folder that holds `saved_model.pb`, the `.keras`, `.h5` or `.tflite` file, or a `config.json` with
    `--weights`. The text names what stands there or beside it.
    """


class CorruptModel(ModelError):
    """Truncated, a wrong checksum, or sizes that contradict each other.

    Cure: upload or export the model again.
    """


class UnsupportedModel(ModelError):
    """A sound model with a part that cannot be streamed, or that needs what was not given: a class of your own, code of its
    own.

    Cure: the text names the part. `--custom_objects` for your own classes, `--unsafe_model` for a lambda that you trust, or
    export the model as a SavedModel.
    """


class SignatureNotFound(ModelError):
    """The model has no signature of that name.

    Cure: `headrace inspect --model=URI` lists them; `--signature=NAME` chooses one.
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

    Cure: write the file again, or leave it out of `--input`.
    """


class ColumnError(DataError):
    """A column is missing, or its type or length does not fit the model's input.

    Cure: `--feature TENSOR=COLUMN` names the column; `--cast`, `--pad` or `--decode_image` let a value change on its way. The
    text names the nearest columns.
    """


class NullFeature(DataError):
    """A null where the model needs a value.

    Cure: `--fill TENSOR=VALUE` says what stands for it, or `--on_error=dead_letter` leaves the row out, with its reason.
    """


class JobError(HeadraceError):
    """The job cannot be done as it was asked for."""


class InvalidRequest(JobError):
    """Flags that are wrong or contradict each other.

    Cure: the text names the flag, and the nearest that there is.
    """


class InvalidInferenceArgs(InvalidRequest, ValueError):
    """`RunInference(…, inference_args=…)` with a model handler that takes none; a `ValueError`, as Beam's own handlers raise.

    Cure: leave `inference_args` out, and give everything that the model reads as tensors or columns of the elements.
    """


class OutputConflict(JobError):
    """The output folder holds another job's output: of another model, mapping, input or plan.

    Cure: another `--output`; or `--overwrite` replaces it, or `--incremental` where only inputs changed. The text names what
    differs.
    """


class ClaimLost(JobError):
    """Another run has claimed the output folder since this one began. Nothing of that run's was touched.

    Cure: the text names the other run. Give each job an `--output` of its own, or start one only when the other has ended.
    """


class OutputIncomplete(JobError):
    """A shard of the plan is not accounted for.

    Cure: start the same command again: it computes what is missing.
    """


class WorkerMismatch(JobError):
    """A worker has other versions of TensorFlow, Keras, pyarrow, headrace or Python than the launcher.

    Cure: start the job from the image that the workers run (`--sdk_container_image`), or install the launcher's versions on
    them (`--requirements_file`).
    """


class TooManyBadRows(JobError):
    """More rows cannot be predicted than `--max_bad_rows` lets go to dead letters.

    Cure: look at the dead letters' `headrace_error`; mend the data or the flags, or raise the bound.
    """

"""Every error that headrace raises on purpose.

    HeadraceError
    ├── StorageError            a store could not do what was asked, for good
    │   ├── ObjectNotFound      no such bucket, folder or object
    │   ├── AlreadyExists       a create-only write met an object that stands there
    │   ├── ObjectChanged       another generation than the pinned one
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
        ├── OutputConflict      the output folder holds another job's output
        ├── OutputIncomplete    a shard of the plan is not accounted for
        ├── WorkerMismatch      a worker has other versions than the launcher
        └── TooManyBadRows      more rows cannot be predicted than --max_bad_rows lets go to dead letters

Each carries what it is about, what was expected, what was found, and the cure; `str()` is one paragraph of the four.
"""

from __future__ import annotations

import re

# A web address's user and query may be a password or a signature.
_WEB_ADDRESS = re.compile(r"(https?://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")
# What libraries say of an error may have many lines; a runner hands on no more than the first of ours.
_LINES = re.compile(r"\s*\n\s*")


class HeadraceError(Exception):
    """`what` is a whole sentence naming the object; `expected`, `found` and `cure` are phrases and may be empty.

    The whole paragraph is the exception's one argument, since Beam raises a worker's exception anew from that alone.
    Of web addresses it shows neither user nor query.
    """

    def __init__(self, what: str, *, expected: str = "", found: str = "", cure: str = "") -> None:
        what, expected, found, cure = (
            _LINES.sub(" ", _WEB_ADDRESS.sub(r"\1\2", text)).strip() for text in (what, expected, found, cure)
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
    pass


class ObjectNotFound(StorageError):
    pass


class AlreadyExists(StorageError):
    pass


class ObjectChanged(StorageError):
    pass


class AccessDenied(StorageError):
    pass


class ModelError(HeadraceError):
    pass


class NotAModel(ModelError):
    pass


class CorruptModel(ModelError):
    pass


class UnsupportedModel(ModelError):
    pass


class SignatureNotFound(ModelError):
    pass


class DataError(HeadraceError):
    """`stage` is where a batch's way ended, while that is known: "preprocess", "features", "model", …"""

    stage: str = ""


class NotParquet(DataError):
    pass


class ColumnError(DataError):
    pass


class NullFeature(DataError):
    pass


class JobError(HeadraceError):
    pass


class InvalidRequest(JobError):
    pass


class OutputConflict(JobError):
    pass


class OutputIncomplete(JobError):
    pass


class WorkerMismatch(JobError):
    pass


class TooManyBadRows(JobError):
    pass

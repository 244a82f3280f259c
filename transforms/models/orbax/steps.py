"""Which objects make up a checkpoint: those of one step, without the optimizer's where these are objects of their own.

A folder of checkpoints holds one folder for each step, named by its number (keras/src/callbacks/orbax_checkpoint.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ...bounded_json import NotJson, parse_json_object
from ...errors import CorruptModel, NotAModel
from ...storage import ObjectRef, Store

STEP_METADATA = "_CHECKPOINT_METADATA"
CONFIG, STATE, ASSETS = "model_config/", "pytree/", "assets/"
# The texts of a tree, by their keys (orbax/checkpoint/experimental/v1/_src/serialization/string_leaf_handler.py).
TEXTS = "_strings.json"
# The trees of Keras' state that a model is called with.
WEIGHTS = ("trainable_variables", "non_trainable_variables")
_METADATA_BYTES = 1 << 20
# What is not a folder of checkpoints may hold millions of objects: the first ones of it show which it is.
_GLANCE = 500
_STEP = re.compile(r"(?:0|[1-9]\d{0,17})")
# Of an OCDBT database: each process that saves has a folder of its own.
DATA_FILE = re.compile(r"(?:ocdbt\.process_\w+/)?d/\w+", re.ASCII)
_BELONGS = re.compile(
    rf"{CONFIG}{TEXTS}|{ASSETS}.+|{STATE}(?:_METADATA|manifest\.ocdbt|{DATA_FILE.pattern}|(?:{'|'.join(WEIGHTS)})\..+)",
    re.ASCII,
)


def step_objects(store: Store, uri: str) -> tuple[ObjectRef, ...]:
    """The objects of the step whose folder `uri` is, or of the newest one below it; none where it is neither.

    The first of them is the step's metadata. Raises `CorruptModel` for a step that was not finished, and `NotAModel` for a
    folder in which none is.
    """
    metadata = store.find(f"{uri}/{STEP_METADATA}")
    if metadata is not None:
        check_finished(store, uri, metadata)
        return _belonging(metadata, _relative(store, uri))
    steps: dict[str, list[tuple[str, ObjectRef]]] = {}
    for i, (path, ref) in enumerate(_relative(store, uri)):
        if path[:1] > "9":  # a listing is in the order of the names: no step follows
            break
        step, _, below = path.partition("/")
        if _STEP.fullmatch(step):
            steps.setdefault(step, []).append((below, ref))
        if i == _GLANCE and not _with_metadata(steps):
            break
    unfinished = []
    found = _with_metadata(steps)
    for step in sorted(found, key=int, reverse=True):
        if _is_finished(store, found[step]):
            return _belonging(found[step], steps[step])
        unfinished.append(step)
    if unfinished:
        raise NotAModel(
            f"{uri} holds no checkpoint that was finished",
            expected="a step that Orbax has committed",
            found=f"only steps that were begun: {', '.join(unfinished[:6])}",
            cure="Wait until training has saved one, or name another folder.",
        )
    return ()


def step_of(objects: tuple[ObjectRef, ...]) -> tuple[str, str]:
    """The URI of the step's folder, and its name."""
    folder = objects[0].uri.removesuffix(f"/{STEP_METADATA}")
    return folder, folder.rpartition("/")[2]


def below(objects: tuple[ObjectRef, ...], folder: str) -> dict[str, ObjectRef]:
    """The objects of one of the step's folders, by their path in it."""
    start = f"{step_of(objects)[0]}/{folder}"
    return {ref.uri.removeprefix(start): ref for ref in objects if ref.uri.startswith(start)}


def _relative(store: Store, uri: str) -> Iterator[tuple[str, ObjectRef]]:
    for ref in store.list(f"{uri}/"):
        yield ref.uri.removeprefix(f"{uri}/"), ref


def _with_metadata(steps: dict[str, list[tuple[str, ObjectRef]]]) -> dict[str, ObjectRef]:
    return {step: ref for step, found in steps.items() for path, ref in found if path == STEP_METADATA}


def _belonging(metadata: ObjectRef, found: Iterable[tuple[str, ObjectRef]]) -> tuple[ObjectRef, ...]:
    return (metadata, *(ref for path, ref in found if _BELONGS.fullmatch(path)))


def _is_finished(store: Store, ref: ObjectRef) -> bool:
    """A bucket has no way to rename a whole folder: what is being written to it is there from the first object on."""
    if ref.size > _METADATA_BYTES:
        raise CorruptModel(f"{ref.uri} is too large", expected=f"at most {_METADATA_BYTES} bytes")
    try:
        return parse_json_object(store.read(ref)).get("commit_timestamp_nsecs") is not None
    except NotJson:
        return False


def check_finished(store: Store, uri: str, metadata: ObjectRef) -> None:
    if not _is_finished(store, metadata):
        raise CorruptModel(
            f"The checkpoint {uri} was not finished",
            expected=f"a time of its commit in {STEP_METADATA}",
            found="a step that was begun, and not committed",
            cure="Wait until it is saved, or name another step, or the folder above for the newest one.",
        )

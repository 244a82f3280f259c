"""The files of a SavedModel: its graph as a message, its checkpoint's index, and what TensorFlow's own loader must read."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...errors import CorruptModel, HeadraceError, SignatureNotFound, UnsupportedModel
from ...storage import ObjectRef, Store
from ..first_bytes import FIRST_BYTES, SAVED_MODEL, other_file
from ..ref import ModelRef
from ..spec import Composite, Signature, TensorSpec
from ..streaming.whole_reads import Readable, ReadTogether, read_whole, say_unchecked
from .flat_inputs import as_output
from .tensor_bundle import COPY_AGAIN, Bundle, Entry, damaged

INIT_OP = "__saved_model_init_op"
_INDEX, _FINGERPRINT = "variables/variables.index", "fingerprint.pb"
_LARGE = 16 << 20
_folders = itertools.count()


def read_front(store: Store, ref: ModelRef) -> ReadTogether:
    """Asks at once for what is read before any weight: graph, index, and the end of large data, where the checkpoint's
    object graph is written. A wrong guess of its place costs a thousandth of the data's bytes and one more request.
    """
    names = ("saved_model.pb", "saved_model.pbtxt", _INDEX, _FINGERPRINT)
    wanted = [(part, 0) for name in names if (part := ref.object(name)) is not None]
    data = [part for part in ref.objects if part.uri.startswith(f"{ref.uri}/variables/variables.data-")]
    if len(data) == 1 and data[0].size >= _LARGE:
        wanted.append((data[0], data[0].size - (data[0].size >> 10)))
    return ReadTogether(store, wanted)


def read_proto(store: Readable, ref: ModelRef) -> Any:
    """saved_model.pb, or saved_model.pbtxt. Raises `CorruptModel`."""
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    binary = ref.object("saved_model.pb")
    source = binary or ref.object("saved_model.pbtxt")
    if source is None:
        raise CorruptModel(f"{ref.uri} holds neither saved_model.pb nor saved_model.pbtxt", cure=COPY_AGAIN)
    if source.crc32c is None:
        say_unchecked(source.name)
    data = read_whole(store, source)
    start = data[:FIRST_BYTES]
    # A frozen graph can be parsed as an empty SavedModel. A file that begins correctly is damaged further on.
    if not start.startswith(SAVED_MODEL) and (other := other_file(source.uri, source.size, start)) is not None:
        raise other
    try:
        if binary is not None:
            return saved_model_pb2.SavedModel.FromString(data)
        return text_format.Parse(data.decode(), saved_model_pb2.SavedModel())
    # Text that nests too deep for Python raises RecursionError.
    except (DecodeError, text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptModel(
            f"{source.uri} cannot be parsed", expected="a SavedModel", found=str(error), cure=COPY_AGAIN
        ) from error


def open_bundle(store: Readable, ref: ModelRef) -> Bundle:
    """Raises `CorruptModel` where there is no index, or where it belongs to another export than the graph; `NotAModel` where
    another kind of file is in its place.
    """
    index = ref.object(_INDEX)
    if index is None:
        raise CorruptModel(f"{ref.uri} has weights, but no variables/variables.index", cure="Copy the whole folder.")
    if (other := other_file(index.uri, index.size, read_whole(store, index)[:FIRST_BYTES])) is not None:
        raise other
    _check_fingerprint(store, ref, index)

    def shard(i: int, n: int) -> ObjectRef | None:
        return ref.object(f"variables/variables.data-{i:05d}-of-{n:05d}")

    return Bundle(store, index, shard)


def _check_fingerprint(store: Readable, ref: ModelRef, index: ObjectRef) -> None:
    """`checkpoint_hash` is the FarmHash Fingerprint64 of the index (tensorflow/cc/saved_model/fingerprinting.cc).

    Exports of TensorFlow before 2.12 have no fingerprint, and one that was written without a checkpoint has the hash 0.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import fingerprint_pb2

    source = ref.object(_FINGERPRINT)
    if source is None:
        return
    try:
        expected = fingerprint_pb2.FingerprintDef.FromString(read_whole(store, source)).checkpoint_hash
    except DecodeError as error:
        raise CorruptModel(
            f"{source.uri} cannot be parsed", expected="a SavedModel's fingerprint", found=str(error), cure=COPY_AGAIN
        ) from error
    found = checkpoint_hash(read_whole(store, index))
    if expected and found != expected:
        raise CorruptModel(
            f"The graph and the weights of {ref.uri} belong to different exports",
            expected=f"{_INDEX} with the fingerprint {expected:016x}, which {_FINGERPRINT} records",
            found=f"the fingerprint {found:016x}",
            cure=f"Copy saved_model.pb, {_FINGERPRINT} and variables/ from the same export.",
        )


def signature_of(name: str, definition: Any, ref: ModelRef) -> Signature:
    """Raises `UnsupportedModel` where it takes or returns anything but dense, ragged and sparse tensors."""
    return Signature(
        name,
        {one: _taken(_spec(one, info, ref), info) for one, info in sorted(definition.inputs.items())},
        {one: as_output(_spec(one, info, ref)) for one, info in sorted(definition.outputs.items())},
    )


def tensor_names(info: Any) -> list[str]:
    """The graph's tensors that one of a signature's is made of."""
    encoding = info.WhichOneof("encoding")
    if encoding == "coo_sparse":
        sparse = info.coo_sparse
        return [sparse.indices_tensor_name, sparse.values_tensor_name, sparse.dense_shape_tensor_name]
    return [one.name for one in info.composite_tensor.components] if encoding == "composite_tensor" else [info.name]


def no_such_signature(
    ref: ModelRef, name: str, signatures: Sequence[str], functions: Sequence[str] = ()
) -> SignatureNotFound:
    """`functions` can be called too, by names that take the place of a signature's."""
    if functions and not signatures:
        return SignatureNotFound(
            f"{ref.uri} has no signature {name!r}",
            expected=f"one of its functions: {', '.join(functions)}",
            found="no signature at all",
            cure=f"Name a function instead, as in --signature={functions[0]} (signature={functions[0]!r}), or export the "
            "model with signatures=….",
        )
    return SignatureNotFound(
        f"{ref.uri} has no signature {name!r}",
        expected=f"one of {', '.join(map(repr, signatures))}" if signatures else "a signature",
        found="" if signatures else "no signature at all",
        cure="Name one with --signature." if signatures else "Export the model with signatures=….",
    )


@contextmanager
def loading_graph(ref: ModelRef) -> Iterator[None]:
    """TensorFlow's loader raises anything: `UnsupportedModel` is raised for it."""
    import tensorflow as tf

    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"TensorFlow {tf.__version__} cannot load the graph of {ref.uri}",
            found=str(error).partition("\n")[0],
            cure="Import the package that registers its operations, or export it again with this TensorFlow.",
        ) from error


@contextmanager
def reading_graph(ref: ModelRef) -> Iterator[None]:
    """Damaged graphs cause more than messages that cannot be parsed: unknown dtypes, missing inputs, invalid UTF-8."""
    from google.protobuf.message import DecodeError

    try:
        yield
    except (DecodeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise damaged(f"The graph of {ref.uri}", str(error)) from error


def check_fit(ref: ModelRef, entry: Entry, dtype: str, shape: Any) -> None:
    """Raises `CorruptModel` where a variable's value in the checkpoint is not of the dtype and shape that its graph has."""
    if entry.dtype != dtype or not shape.is_compatible_with(entry.shape):
        raise unfit(ref, f"variable {entry.name!r}", f"{entry.dtype} {list(entry.shape)}", f"{dtype} {shape}")


def unfit(ref: ModelRef, what: str, found: str, expected: str = "") -> CorruptModel:
    return CorruptModel(
        f"The checkpoint of {ref.uri} does not fit its graph: {what}",
        expected=expected,
        found=found,
        cure="Copy saved_model.pb and variables/ from the same export.",
    )


class RamFolder:
    """A folder in TensorFlow's in-memory file system, until removed or collected."""

    def __init__(self) -> None:
        # Writing to a name that exists appends there, so each has a name of its own.
        self.uri = f"ram://headrace-{os.getpid()}-{next(_folders)}"
        self.remove = weakref.finalize(self, _remove, self.uri)

    def write(self, relative: str, data: bytes) -> None:
        import tensorflow as tf

        path = f"{self.uri}/{relative}"
        tf.io.gfile.makedirs(path.rpartition("/")[0])
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(data)

    def load(self, ref: ModelRef, tags: list[str]) -> Any:
        """The graph with its variables unset. Raises `UnsupportedModel`."""
        import tensorflow as tf

        options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=True)
        with loading_graph(ref):
            return tf.saved_model.load(self.uri, tags, options)


def graph_in_memory(store: Store, ref: ModelRef, proto: Any) -> RamFolder:
    """The graph and the assets, as TensorFlow's loader reads them."""
    folder = RamFolder()
    try:
        folder.write("saved_model.pb", proto.SerializeToString())
        for asset in ref.objects:
            relative = asset.uri.removeprefix(f"{ref.uri}/")
            if relative.startswith("assets/"):
                folder.write(relative, read_whole(store, asset))
    except BaseException:
        folder.remove()
        raise
    return folder


def checkpoint_hash(index: bytes) -> int:
    """The fingerprint of a checkpoint's index that fingerprint.pb records: FarmHash's Fingerprint64.

    TensorFlow's code that writes fingerprint.pb computes it from a folder. An operation of TensorFlow computes it too, but
    running any fixes TensorFlow's number of threads, which predicting sets later.
    """
    from tensorflow.core.protobuf import fingerprint_pb2, saved_model_pb2

    # Private: tests/transforms/models/saved_model/test_mixed_exports.py compares it with the operation.
    from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

    folder = RamFolder()
    try:
        # The graph is hashed too, and an empty one will do.
        folder.write("saved_model.pb", saved_model_pb2.SavedModel(meta_graphs=[{}]).SerializeToString())
        folder.write(_INDEX, index)
        written = fingerprint_pb2.FingerprintDef.FromString(fingerprinting.CreateFingerprintDef(folder.uri))
    finally:
        folder.remove()
    return int(written.checkpoint_hash)


def _remove(uri: str) -> None:
    import tensorflow as tf

    if tf.io.gfile.exists(uri):
        tf.io.gfile.rmtree(uri)


def _spec(name: str, info: Any, ref: ModelRef) -> TensorSpec:
    import tensorflow as tf

    shape, dtype, rows_differ, composite = info.tensor_shape, info.dtype, 0, None
    encoding = info.WhichOneof("encoding")
    if encoding == "coo_sparse":
        composite = Composite("sparse")
    elif encoding == "composite_tensor":
        kind = info.composite_tensor.type_spec
        if kind.type_spec_class != kind.RAGGED_TENSOR_SPEC:
            raise UnsupportedModel(
                f"{name!r} of {ref.uri} is a {kind.type_spec_class_name or encoding}, not a dense tensor",
                cure="Export the model with dense inputs and outputs.",
            )
        # RaggedTensorSpec._serialize: shape, dtype, ragged rank, dtype of the row splits.
        of = kind.type_state.tuple_value.values
        shape, dtype, rows_differ = of[0].tensor_shape_value, of[1].tensor_dtype_value, of[2].int64_value
        composite = Composite("ragged", splits=tf.dtypes.as_dtype(of[3].tensor_dtype_value).name)
    sizes: tuple[int | None, ...] | None = None
    if not shape.unknown_rank:
        sizes = tuple(d.size if d.size >= 0 and not 1 <= i <= rows_differ else None for i, d in enumerate(shape.dim))
    return TensorSpec(name, tf.dtypes.as_dtype(dtype).base_dtype.name, sizes, composite=composite)


def _taken(spec: TensorSpec, info: Any) -> TensorSpec:
    """An input of a graph of TensorFlow 1, whose loader names the parts (tensorflow/python/saved_model/load_v1_in_v2.py)."""
    if spec.composite is None:
        return spec
    ends: tuple[str, ...] = ("indices", "values", "dense_shape")
    if spec.composite.kind == "ragged":
        ends = tuple(f"component_{i}" for i, _ in enumerate(tensor_names(info)))
    return replace(spec, composite=replace(spec.composite, parts=tuple(f"{spec.name}_{end}" for end in ends)))

"""Finds the tensors of an HDF5 file from its metadata alone.

Each pass follows the known structures as far as it can, and then fetches everything that it missed together: round trips
depend on the depth of the file's index, not on the number of layers. HDF5's own library, which crafted files hang or abort,
reads no byte of a file: `hdf5_format` lists what is read. Layout as Keras and h5py write it.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ...errors import CorruptModel, UnsupportedModel
from ..first_bytes import FIRST_BYTES, other_file
from ..streaming.ranges import NotFetched, RangeFile, Ranges
from .hdf5_chunks import FILTER_NAMES, read_chunks, unpacked_bytes
from .hdf5_format import UNDEFINED, Damaged, Link, Message, NotSupported, Structures
from .hdf5_links import links
from .hdf5_texts import Texts
from .hdf5_types import (
    CHUNKED,
    CONTIGUOUS,
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    VIRTUAL,
    Dataset,
    Layout,
    Type,
    filters_of,
    layout_of,
    shape_of,
    unshared,
    value_type,
)
from .refusals import damaged

# Largest value that is not streamed, and its largest chunks: a chunked value may expand 1032-fold while it is read.
VALUE_BYTES, _CHUNK_BYTES = 1 << 20, 4 << 20
# All of them together; one may be asked for by many paths.
_ALL_VALUE_BYTES = 256 << 20
# One layer's groups and datasets are mostly within these many blocks around the first one read: 48 KiB in all, which take
# a hundredth of a round trip's time.
_AHEAD, _BEHIND = 7, 4
# For names that were not expected to be read.
_READ_AHEAD = 2
# A pass reaches one level deeper into the index; sound files of a million datasets need about a dozen.
_MAX_PASSES = 64
_MAX_DATASETS = 1_000_000
T = TypeVar("T")
_SAVE_AGAIN = "Save the model again with Keras, which stores weights plainly."


@dataclass(frozen=True, slots=True)
class _Group:
    """The children of a group; `address` distinguishes groups, whatever their paths."""

    address: int
    datasets: Mapping[str, Dataset]
    groups: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]


class Hdf5File:
    """`what` names the file in errors."""

    def __init__(
        self,
        file: RangeFile,
        what: str,
        texts: re.Pattern[str] | None = None,
        likely: Callable[[str], bool] = bool,
    ) -> None:
        """`texts` matches the names of the attributes that `texts(path)` is to give.

        `likely` recognises by their own names the groups that will be read; others cost more round trips. Raises
        `CorruptModel` where it is not an HDF5 file, or a truncated one.
        """
        self._size, self._what, self._texts = file.size, what, texts
        self._source, self._ranges = file.source, file.source if isinstance(file.source, Ranges) else None
        self._start, self._likely, self._indexed = file.start, likely, False
        self._known: dict[str, _Group | None] = {}
        self._value_bytes = 0
        head = self._source.read(self._start, min(FIRST_BYTES, file.size))
        if (other := other_file(what, file.size, head)) is not None:
            raise other
        with self._damage("is no HDF5 file, or a truncated one", "an HDF5 superblock"):
            self._structures = Structures(lambda at, n: self._source.read(self._start + at, n), file.size)
        self._texts_of = Texts(self._structures)

    def locate(self, groups: Iterable[str]) -> None:
        """Makes `group` answer for all of these without further requests. Raises as `group` does."""
        self._visit(groups, lambda _: ())

    def walk(self, wanted: Callable[[str], bool]) -> list[str]:
        """The paths of the root and of every group below it, as far as the names from the root down are `wanted`.

        `group` then answers for them without further requests. Raises as `group` does.
        """
        seen: set[int] = set()

        def below(path: str) -> Iterable[str]:
            group = self._known[path]
            # A hard link may lead back up.
            if group is None or group.address in seen:
                return ()
            seen.add(group.address)
            return [f"{path}/{name}".lstrip("/") for name in group.groups if wanted(name)]

        return self._visit([""], below)

    def group(self, path: str) -> Mapping[str, Dataset] | None:
        """The datasets directly below a group by name, in the file's order; None where there is no such group.

        Raises `CorruptModel` or `UnsupportedModel` naming the dataset.
        """
        if path not in self._known:
            self._fetch_index()
            self._known[path] = self._read_group(path)
        found = self._known[path]
        return None if found is None else found.datasets

    def texts(self, path: str) -> Mapping[str, tuple[str, ...]]:
        """The attributes of a group that hold strings, by name, as far as they were asked for; a scalar is a tuple of one.

        Raises as `group` does.
        """
        self.group(path)
        found = self._known[path]
        return {} if found is None else found.texts

    def has(self, path: str) -> bool:
        """Whether a group or dataset exists at `path`, by hard links alone."""
        with self._damage(f"is damaged at {path!r}", "readable HDF5"):
            return self._find(path) is not None

    def read(self, dataset: Dataset) -> Any:
        """The value of a dataset of at most `VALUE_BYTES`, as an array."""
        if dataset.nbytes > VALUE_BYTES:
            raise self._in_pieces(dataset.path, f"{dataset.nbytes} bytes that are chunked, compressed or big-endian")
        self._value_bytes += dataset.nbytes
        if self._value_bytes > max(_ALL_VALUE_BYTES, 4 * self._size):
            raise self._in_pieces(dataset.path, f"more than {_ALL_VALUE_BYTES} bytes of such values in all")
        with self._damage(f"has unreadable data at {dataset.path!r}", "a value"):
            array = self._value(dataset)
        if dataset.dtype == "bfloat16":
            import ml_dtypes

            return array.view(ml_dtypes.bfloat16)
        return array != 0 if dataset.dtype == "bool" else array.astype(array.dtype.newbyteorder("="), copy=False)

    def _value(self, dataset: Dataset) -> Any:
        kind, layout, filters = self._described(dataset.address)
        width = "u1" if dataset.dtype == "bool" else "u2" if dataset.dtype == "bfloat16" else dataset.dtype
        dtype = np.dtype(width).newbyteorder("<" if kind.little else ">")
        if not dataset.nbytes:
            try:
                return np.empty(dataset.shape, dtype)
            except ValueError as error:  # the other dimensions may be of any size
                raise self._corrupt(
                    f"gives {dataset.path!r} a shape that no array has", "dimensions of an array", str(dataset.shape)
                ) from error
        if layout.kind != CHUNKED:
            data = layout.data
            if layout.kind == CONTIGUOUS:
                data = self._structures.read(layout.address, dataset.nbytes)
            return np.frombuffer(data, dtype).reshape(dataset.shape)
        if not layout.chunk:
            raise self._in_pieces(dataset.path, "chunks in HDF5's newer layout")
        # A chunk is unpacked whole, however little of it the dataset needs.
        if (nbytes := unpacked_bytes(layout, dataset.shape)) > _CHUNK_BYTES:
            raise self._corrupt(
                f"keeps {dataset.path!r} in chunks too large for it",
                f"at most {_CHUNK_BYTES} bytes",
                f"{nbytes} bytes",
            )
        return read_chunks(self._structures, layout, filters, dataset.shape, dtype)

    def _fetch_index(self) -> None:
        """Fetches the way to the likely groups. Damage is reported to the caller that asks for the damaged part."""
        if self._ranges is None or self._indexed:
            return
        self._indexed = True
        todo = [Link(self._structures.root)]
        seen = {self._structures.root}
        for _ in range(_MAX_PASSES):
            unread = []
            while todo and len(seen) <= _MAX_DATASETS:
                link = todo.pop()
                links = self._try(lambda link=link: self._children(link))  # type: ignore[misc]
                if links is None:
                    unread.append(link)
                    continue
                for name, child in links.items():
                    if child.address is not None and child.address not in seen and self._likely(name):
                        seen.add(child.address)
                        todo.append(child)
            if not unread or not self._ranges.fetch_wanted(_AHEAD, _BEHIND):
                break
            todo = unread
        self._ranges.wanted.clear()

    def _children(self, link: Link) -> Mapping[str, Link]:
        """The children of an object."""
        assert link.address is not None
        try:
            try:
                return links(self._structures, link.address) or {}
            except NotFetched:
                if link.table is not None:
                    # Asked for in the same round trip as the header, which says so too.
                    return self._structures.table_links(*link.table)
                raise
        except (Damaged, NotSupported, struct.error, UnicodeDecodeError):
            return {}

    def _visit(self, paths: Iterable[str], below: Callable[[str], Iterable[str]]) -> list[str]:
        """Reads the groups at `paths`, then what is `below` each; returns all that it came to."""
        self._fetch_index()
        found, pending = [], list(paths)
        collecting = self._ranges is not None
        for trip in itertools.count(1):
            unread, queue = [], pending
            while queue:
                further: list[str] = []
                for path in queue:
                    if path not in self._known and collecting:
                        read = self._try(lambda path=path: (self._read_group(path),))  # type: ignore[misc]
                        if read is None:
                            unread.append(path)
                            continue
                        self._known[path] = read[0]
                    self.group(path)
                    found.append(path)
                    further += below(path)
                    if len(found) > _MAX_DATASETS:
                        raise self._corrupt("holds too many groups", f"at most {_MAX_DATASETS}", "more")
                queue = further
            if not unread:
                return found
            collecting = self._ranges is not None and self._ranges.fetch_wanted(_READ_AHEAD) and trip < _MAX_PASSES
            pending = unread
        raise AssertionError("itertools.count ends")

    def _try(self, read: Callable[[], T]) -> T | None:
        """None where bytes are missing, which are noted."""
        assert self._ranges is not None
        self._ranges.collecting = True
        try:
            return read()
        except NotFetched:
            return None
        finally:
            self._ranges.collecting = False

    def _read_group(self, path: str) -> _Group | None:
        with self._damage(f"is damaged at {path!r}", "readable HDF5"):
            address = self._find(path)
            found = None if address is None else links(self._structures, address)
            if address is None or found is None:
                return None
            # Several paths may lead to the same group, and long names into deep ones.
            self._structures.spend(40 * len(found))
            datasets: dict[str, Dataset] = {}
            groups: list[str] = []
            unread = False
            for name, link in found.items():
                try:
                    child = self._follow(name, link, path)
                    if self._structures.is_group(child):
                        groups.append(name)
                    elif any(message.kind == LAYOUT for message in self._structures.header(child)):
                        datasets[name] = self._dataset(f"{path}/{name}".lstrip("/"), child)
                except NotFetched:
                    # Its siblings' metadata can be asked for in the same round trip.
                    unread = True
            if unread:
                raise NotFetched
            texts: Mapping[str, tuple[str, ...]] = {}
            if self._texts is not None:
                texts = self._texts_of.read(address, self._texts, f"of {path!r} in {self._what}")
            return _Group(address, datasets, tuple(groups), texts)

    def _find(self, path: str) -> int | None:
        """The address of the object at a path, by hard links alone."""
        self._structures.spend(len(path))
        address = self._structures.root
        for part in filter(None, path.split("/")):
            found = links(self._structures, address)
            if found is None or part not in found:
                return None
            address = self._follow(part, found[part], path)
        return address

    def _follow(self, name: str, link: Link, path: str) -> int:
        if link.address is None:
            raise UnsupportedModel(
                f"{self._what} has {link.kind} at {name!r} in {path!r}, which headrace does not follow",
                expected="groups and datasets in the file itself",
                cure=_SAVE_AGAIN,
            )
        return link.address

    def _dataset(self, path: str, address: int) -> Dataset:
        kind, layout, filters = self._described(address)
        messages = self._structures.header(address)
        if layout.kind == VIRTUAL or any(message.kind == EXTERNAL for message in messages):
            raise self._refused(path, "is in another file", "data in the file itself", "a virtual or external dataset")
        shape = shape_of(_first(messages, DATASPACE) or b"")
        if shape is None:
            raise self._corrupt(f"has no value at {path!r}", "an array", "an empty dataspace")
        dtype = self._dtype(path, kind, address)
        nbytes = math.prod(shape) * kind.size
        if layout.kind == CONTIGUOUS and nbytes:
            if layout.stored != nbytes or layout.address + nbytes > self._size:
                raise self._corrupt(
                    f"contradicts itself about {path!r}, or is truncated",
                    f"{nbytes} bytes for {dtype} {list(shape)} inside the file's {self._size}",
                    f"{layout.stored} bytes at {'no place' if layout.address == UNDEFINED else layout.address}",
                )
            return Dataset(path, dtype, shape, nbytes, layout.address if kind.little else None, address)
        self._check_value(path, layout, filters, nbytes)
        return Dataset(path, dtype, shape, nbytes, None, address)

    def _described(self, address: int) -> tuple[Type, Layout, list[tuple[int, tuple[int, ...]]]]:
        messages = self._structures.header(address)
        layout, kind = _first(messages, LAYOUT), _first(messages, DATATYPE)
        if layout is None or kind is None or _first(messages, DATASPACE) is None:
            raise Damaged("an array without a type, a shape or a layout")
        packed = _first(messages, FILTERS)
        return value_type(kind), layout_of(layout), [] if packed is None else filters_of(packed)

    def _dtype(self, path: str, kind: Type, address: int) -> str:
        """TensorFlow's name of the dtype."""
        if kind.kind == "number":
            return kind.name
        # h5py knows no such number: Keras says in an attribute what the two bytes are.
        if kind.kind == "opaque" and kind.size == 2 and self._texts_of.short(address, "dtype") == "bfloat16":
            return "bfloat16"
        raise self._refused(path, "is of a kind that no weight has", "numbers or booleans", kind.name)

    def _check_value(self, path: str, layout: Layout, filters: list[tuple[int, tuple[int, ...]]], nbytes: int) -> None:
        for number, _ in filters:
            if number not in FILTER_NAMES:
                what = "is compressed in a way that headrace does not read"
                raise self._refused(path, what, ", ".join(FILTER_NAMES.values()), f"HDF5 filter {number}")
        stored = len(layout.data) if layout.kind != CHUNKED else nbytes
        if layout.kind == CHUNKED and layout.chunk and nbytes and layout.address == UNDEFINED:
            stored = 0
        if stored != nbytes:
            raise self._corrupt(f"has no data at {path!r}", f"{nbytes} bytes", f"{stored} bytes stored")

    @contextmanager
    def _damage(self, what: str, expected: str) -> Iterator[None]:
        """Says of what is damaged, or not read here, where it was met."""
        try:
            yield
        except NotSupported as error:
            raise UnsupportedModel(
                f"{self._what} {what}, or of a kind that headrace does not read",
                expected="the structures that h5py writes for Keras",
                found=str(error),
                cure=_SAVE_AGAIN,
            ) from error
        except (Damaged, struct.error, UnicodeDecodeError, zlib.error) as error:
            raise self._corrupt(what, expected, str(error)) from error

    def _in_pieces(self, path: str, found: str) -> UnsupportedModel:
        expected = f"one contiguous, little-endian piece (or at most {VALUE_BYTES} bytes)"
        return self._refused(path, "is stored in pieces", expected, found)

    def _refused(self, path: str, what: str, expected: str, found: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"Dataset {path!r} of {self._what} {what}", expected=expected, found=found, cure=_SAVE_AGAIN
        )

    def _corrupt(self, what: str, expected: str, found: str) -> CorruptModel:
        return damaged(f"{self._what} {what}", expected, found)


def _first(messages: tuple[Message, ...], kind: int) -> bytes | None:
    return next((unshared(message) for message in messages if message.kind == kind), None)

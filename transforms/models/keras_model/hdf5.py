"""Where the tensors of an HDF5 file lie, read from its metadata alone.

h5py runs over a file that holds only what has been fetched. A dataset whose metadata is not here yet is put aside, and all that
was missed in one pass over the datasets is fetched together: round trips follow the depth of the file's index, not the
number of layers. Format: HDF5 File Format Specification 3.0; layout as Keras and h5py write it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...errors import CorruptModel, HeadraceError, ModelError, UnsupportedModel
from ..streaming.ranges import NotFetched, RangeFile, Ranges
from .hdf5_index import fetch_index, text_bytes

# Largest value read through h5py: a chunked dataset may expand 1032-fold while it is read.
VALUE_BYTES = 1 << 20
# h5py's header, group and dataset of one layer lie together, mostly within this many blocks behind the first one met.
_READ_AHEAD = 2
# A pass reaches one level deeper into the index; sound files of a million datasets need about a dozen.
_MAX_PASSES = 64
_MAX_DATASETS = 1_000_000
# Keras splits a list of names that does not fit an object header, which holds 64 KiB: 4,096 references to strings.
_MAX_TEXTS, _TEXT_BYTES = 65_536, 1 << 20
# Of what these references lead to; that may be one text over and over.
_ALL_TEXT_BYTES = 64 << 20
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
_SAVE_AGAIN = "Save the model again with Keras, which stores weights plainly."
_COPY_AGAIN = "Copy the file again from where it was saved, or save it again."


@dataclass(frozen=True, slots=True)
class Dataset:
    """`dtype` is TensorFlow's name; `shape` is in elements, `nbytes` its bytes in memory.

    `offset` is that of its little-endian, C-ordered bytes within the HDF5 file, or None where they do not lie in one
    piece: `Hdf5File.read` gives such a value.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class _Group:
    """What lies directly below a group; `address` tells one group from another, whatever its path."""

    address: int
    datasets: Mapping[str, Dataset]
    groups: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]


class Hdf5File:
    """`what` names the file in errors. Leaving the `with` block closes it, which h5py needs before the process ends."""

    def __init__(
        self,
        file: RangeFile,
        what: str,
        texts: re.Pattern[str] | None = None,
        likely: Callable[[str], bool] = bool,
    ) -> None:
        """`texts` matches the names of the attributes that `texts(path)` is to give.

        `likely` tells by their own names which groups will be asked for; others cost more round trips. Raises
        `CorruptModel` where it is no HDF5 file or a truncated one.
        """
        import h5py

        self._size, self._what, self._texts = file.size, what, texts
        self._source, self._ranges = file.source, file.source if isinstance(file.source, Ranges) else None
        self._start, self._likely, self._indexed = file.start, likely, False
        self._known: dict[str, _Group | None] = {}
        try:
            self._file = h5py.File(file, "r")
        except HeadraceError:
            raise
        # h5py turns HDF5's errors into OSError, RuntimeError, KeyError, ValueError, … as it sees fit.
        except Exception as error:
            raise self._corrupt("is no HDF5 file, or a truncated one", "an HDF5 superblock", _brief(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

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
            self._known[path] = self._guarded(path)
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
        """Whether a group or dataset stands at `path`, by hard links alone."""
        try:
            return self._open(path) is not None
        except HeadraceError:
            raise
        except Exception as error:
            raise self._corrupt(f"is damaged at {path!r}", "readable HDF5", _brief(error)) from error

    def read(self, dataset: Dataset) -> Any:
        """The value of a dataset of at most `VALUE_BYTES`, as an array."""
        if dataset.nbytes > VALUE_BYTES:
            raise UnsupportedModel(
                f"Dataset {dataset.path!r} of {self._what} is stored in pieces",
                expected=f"one contiguous, little-endian piece (or at most {VALUE_BYTES} bytes)",
                found=f"{dataset.nbytes} bytes that are chunked, compressed or big-endian",
                cure=_SAVE_AGAIN,
            )
        try:
            opened = self._open(dataset.path)
            # HDF5 unpacks a chunk whole, however little of it the dataset needs.
            if (chunk := math.prod(opened.chunks or ()) * opened.dtype.itemsize) > VALUE_BYTES:
                raise self._corrupt(
                    f"keeps {dataset.path!r} in chunks too large for it",
                    f"at most {VALUE_BYTES} bytes",
                    f"{chunk} bytes",
                )
            array = np.asarray(opened[()])
        except HeadraceError:
            raise
        except Exception as error:
            raise self._corrupt(f"has unreadable data at {dataset.path!r}", "a value", _brief(error)) from error
        if dataset.dtype == "bfloat16":
            import ml_dtypes

            array = np.frombuffer(array.tobytes(), ml_dtypes.bfloat16).reshape(dataset.shape)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _fetch_index(self) -> None:
        if self._ranges is not None and not self._indexed:
            self._indexed = True
            fetch_index(self._ranges, self._start, self._size, self._likely)

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
                    if path not in self._known and collecting and not self._try(path):
                        unread.append(path)
                        continue
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

    def _try(self, path: str) -> bool:
        assert self._ranges is not None
        before = len(self._ranges.wanted)
        self._ranges.collecting = True
        try:
            found = self._guarded(path)
        except NotFetched:
            return False
        finally:
            self._ranges.collecting = False
        # h5py may have answered "not there" where it could not look.
        if len(self._ranges.wanted) > before:
            return False
        self._known[path] = found
        return True

    def _guarded(self, path: str) -> _Group | None:
        collecting = self._ranges is not None and self._ranges.collecting
        missed = len(self._ranges.wanted) if self._ranges is not None else 0
        try:
            return self._read_group(path)
        except (NotFetched, ModelError):
            raise
        except Exception as error:
            if isinstance(error, HeadraceError):
                raise
            if collecting and self._ranges is not None and len(self._ranges.wanted) > missed:
                raise NotFetched from error
            raise self._corrupt(f"is damaged at {path!r}", "readable HDF5", _brief(error)) from error

    def _read_group(self, path: str) -> _Group | None:
        import h5py

        group = self._open(path)
        if not isinstance(group, h5py.Group):
            return None
        if len(group) > _MAX_DATASETS:
            raise self._corrupt(
                f"declares {len(group)} datasets at {path!r}", f"at most {_MAX_DATASETS}", str(len(group))
            )
        datasets: dict[str, Dataset] = {}
        groups: list[str] = []
        unread = False
        for name in group:
            try:
                child = self._child(group, name)
                if isinstance(child, h5py.Dataset):
                    datasets[name] = self._dataset(f"{path}/{name}".lstrip("/"), child)
                elif isinstance(child, h5py.Group):
                    groups.append(name)
            except NotFetched:
                # Its siblings' metadata can be asked for in the same round trip.
                unread = True
        if unread:
            raise NotFetched
        wanted = [name for name in group.attrs if self._texts is not None and self._texts.fullmatch(name)]
        texts = {name: self._text(path, group, name) for name in wanted}
        return _Group(h5py.h5o.get_info(group.id).addr, datasets, tuple(groups), texts)

    def _text(self, path: str, group: Any, name: str) -> tuple[str, ...]:
        import h5py

        attribute = group.attrs.get_id(name)
        shape, dtype = attribute.shape, attribute.dtype
        if shape is None or len(shape) > 1 or dtype.kind not in "OSf":
            raise self._corrupt(f"has no text in {name!r} of {path!r}", "strings", f"{dtype} {shape}")
        # numpy makes floats of an empty list.
        if not math.prod(shape):
            return ()
        if dtype.kind == "f" or math.prod(shape) > _MAX_TEXTS or attribute.get_storage_size() > _TEXT_BYTES:
            raise self._corrupt(
                f"has no list of names in {name!r} of {path!r}",
                f"at most {_MAX_TEXTS} strings in {_TEXT_BYTES} bytes",
                f"{dtype} {shape}",
            )
        if dtype.kind == "O" and (count := math.prod(shape)) > 1:
            header = h5py.h5o.get_info(group.id).addr
            nbytes = text_bytes(lambda at, n: self._source.read(self._start + at, n), header, name, count)
            if (count * self._size if nbytes is None else nbytes) > _ALL_TEXT_BYTES:
                raise self._corrupt(
                    f"has too much text in {name!r} of {path!r}",
                    f"at most {_ALL_TEXT_BYTES} bytes",
                    f"{count} strings of {nbytes or 'any number of'} bytes in all",
                )
        value = group.attrs[name]
        several = [value] if shape == () else list(value)
        return tuple(v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in several)

    def _open(self, path: str) -> Any:
        import h5py

        parent, _, name = path.rpartition("/")
        known = self._known.get(parent)
        if known is not None and name in known.groups:
            # Every link down to it was looked at when its parents were read.
            return self._file[path]
        found = self._file
        for part in filter(None, path.split("/")):
            found = self._child(found, part) if isinstance(found, h5py.Group) else None
            if found is None:
                return None
        return found

    def _child(self, group: Any, name: str) -> Any:
        """Over h5py's low-level calls: with its usual ones the whole index of a file took a third longer."""
        import h5py

        encoded = name.encode("utf-8", "surrogateescape")
        if not group.id.links.exists(encoded):
            return None
        kind = group.id.links.get_info(encoded).type
        if kind != h5py.h5l.TYPE_HARD:
            link = "a soft link" if kind == h5py.h5l.TYPE_SOFT else "an external link"
            raise UnsupportedModel(
                f"{self._what} has {link} at {name!r} in {group.name!r}, which headrace does not follow",
                expected="groups and datasets in the file itself",
                cure=_SAVE_AGAIN,
            )
        return group[name]

    def _dataset(self, path: str, dataset: Any) -> Dataset:
        import h5py

        plist = dataset.id.get_create_plist()
        layout = plist.get_layout()
        if layout == h5py.h5d.VIRTUAL or plist.get_external_count():
            raise UnsupportedModel(
                f"Dataset {path!r} of {self._what} lies in another file",
                expected="data in the file itself",
                found="a virtual or external dataset",
                cure=_SAVE_AGAIN,
            )
        if dataset.shape is None:
            raise self._corrupt(f"has no value at {path!r}", "an array", "an empty dataspace")
        dtype, native = self._dtype(path, dataset)
        shape = tuple(int(n) for n in dataset.shape)
        nbytes = math.prod(shape) * dataset.dtype.itemsize
        stored = dataset.id.get_storage_size()
        offset = dataset.id.get_offset() if layout == h5py.h5d.CONTIGUOUS and nbytes else None
        if offset is None:
            self._check_value(path, plist, nbytes, stored)
        elif stored != nbytes or offset < 0 or offset + nbytes > self._size:
            raise self._corrupt(
                f"contradicts itself about {path!r}, or is truncated",
                f"{nbytes} bytes for {dtype} {list(shape)} inside the file's {self._size}",
                f"{stored} bytes at {offset}",
            )
        return Dataset(path, dtype, shape, nbytes, offset if native else None)

    def _dtype(self, path: str, dataset: Any) -> tuple[str, bool]:
        """TensorFlow's name of the dtype, and whether the bytes are as TensorFlow wants them."""
        dtype = dataset.dtype
        if dtype.kind == "V" and dtype.itemsize == 2 and _text_attribute(dataset, "dtype") == "bfloat16":
            return "bfloat16", True
        if dtype.kind not in "biufc" or dtype.itemsize > 16 or dtype.name in ("float128", "longdouble"):
            raise UnsupportedModel(
                f"Dataset {path!r} of {self._what} is of a kind that no weight has",
                expected="numbers or booleans",
                found=str(dtype),
                cure=_SAVE_AGAIN,
            )
        return dtype.name, bool(dtype.isnative)

    def _check_value(self, path: str, plist: Any, nbytes: int, stored: int) -> None:
        for i in range(plist.get_nfilters()):
            number = plist.get_filter(i)[0]
            if number not in _FILTERS:
                raise UnsupportedModel(
                    f"Dataset {path!r} of {self._what} is compressed in a way that headrace does not read",
                    expected=", ".join(_FILTERS.values()),
                    found=f"HDF5 filter {number}",
                    cure=_SAVE_AGAIN,
                )
        if stored > self._size or (nbytes and not stored):
            raise self._corrupt(f"has no data at {path!r}", f"{nbytes} bytes", f"{stored} bytes stored")

    def _corrupt(self, what: str, expected: str, found: str) -> CorruptModel:
        return CorruptModel(f"{self._what} {what}", expected=expected, found=found, cure=_COPY_AGAIN)


def _text_attribute(dataset: Any, name: str) -> str:
    """A short scalar string attribute, or nothing: a hostile one may declare any size."""
    if name not in dataset.attrs:
        return ""
    attribute = dataset.attrs.get_id(name)
    if attribute.shape != () or attribute.get_storage_size() > 64 or attribute.dtype.kind not in "OS":
        return ""
    value = dataset.attrs[name]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"

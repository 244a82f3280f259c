"""Pages that are there before their bytes: fewer faults, the same content."""

from __future__ import annotations

import ctypes
import mmap
import resource
from collections.abc import Callable

import pytest

from headrace.transforms.storage.prefault import prefault

SIZE = 8 << 20
PAGES = SIZE // mmap.PAGESIZE


def anonymous(kind: int = mmap.MAP_PRIVATE) -> memoryview:
    return memoryview(mmap.mmap(-1, SIZE, flags=kind | mmap.MAP_ANONYMOUS))


def faults(work: Callable[[], None]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def touch(view: memoryview) -> None:
    view[:: mmap.PAGESIZE] = bytes(PAGES)


@pytest.fixture(scope="module", autouse=True)
def _kernel_can() -> None:
    probe = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(probe))
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if madvise(address, SIZE, 23):
        pytest.skip("this kernel has no MADV_POPULATE_WRITE (Linux 5.14)")


@pytest.mark.parametrize("kind", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_writing_to_a_prefaulted_buffer_meets_no_fault(kind: int) -> None:
    touch(anonymous(kind))  # whatever faults but once has done so
    plain, ready = anonymous(kind), anonymous(kind)
    prefault([ready])
    with_faults, without = faults(lambda: touch(plain)), faults(lambda: touch(ready))
    assert without < PAGES // 10 < with_faults


def test_only_whole_pages_inside_the_buffer_are_touched_and_nothing_changes() -> None:
    view = anonymous()
    view[:] = bytes(range(256)) * (SIZE // 256)
    prefault([view[100 : SIZE - 100], view[1:300], view[SIZE // 2 :], memoryview(bytearray(1 << 20))])
    assert view == bytes(range(256)) * (SIZE // 256)

    fresh = anonymous()
    prefault([fresh[mmap.PAGESIZE + 1 : SIZE - mmap.PAGESIZE - 1]])
    assert faults(lambda: fresh.__setitem__(0, 1)) >= 1
    assert faults(lambda: fresh.__setitem__(2 * mmap.PAGESIZE, 1)) == 0


def test_a_mapping_can_be_closed_at_once() -> None:
    mapping = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with memoryview(mapping) as view:
        prefault([view])
    mapping.close()

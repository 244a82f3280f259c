"""How a JPEG image is to be turned, as its EXIF data says.

Only that tag is read, from the first EXIF segment among the first segments, in steps that each take bytes of the file.
Formats: https://www.w3.org/Graphics/JPEG/itu-t81.pdf (annex B), https://www.cipa.jp/std/documents/e/DC-X008-Translation-2019-E.pdf
(4.5.2, and Orientation in 4.6.4), https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf (section 2).
"""

from __future__ import annotations

import struct

UPRIGHT = 1
"""The orientation of pixels that are stored as they are seen."""

_MOST_SEGMENTS = 64
_FILL, _END, _SCAN, _APP1 = 0xFF, 0xD9, 0xDA, 0xE1
_EXIF = b"Exif\0\0"
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION, _SHORT, _ENTRY_BYTES = 0x0112, 3, 12


def orientation(image: memoryview) -> int:
    """1 to 8, as EXIF numbers them; `UPRIGHT` where the image says nothing, or nothing that can be read.

    >>> orientation(memoryview(b"GIF89a"))
    1
    """
    at = 2
    for _ in range(_MOST_SEGMENTS):
        head = image[at : at + 4]
        if len(head) < 4 or head[0] != 0xFF or head[1] in (_SCAN, _END):
            break
        if head[1] == _FILL:
            at += 1
            continue
        size = head[2] << 8 | head[3]
        if size < 2:
            break
        if head[1] == _APP1 and image[at + 4 : at + 10] == _EXIF:
            return _of_tiff(image[at + 10 : at + 2 + size])
        at += 2 + size
    return UPRIGHT


def _of_tiff(data: memoryview) -> int:
    order = _ORDERS.get(bytes(data[:4]))
    if order is None or len(data) < 8:
        return UPRIGHT
    (first,) = struct.unpack_from(f"{order}I", data, 4)
    if first + 2 > len(data):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", data, first)
    entries = data[first + 2 : first + 2 + count * _ENTRY_BYTES]
    whole = len(entries) // _ENTRY_BYTES * _ENTRY_BYTES
    for tag, kind, values, value in struct.iter_unpack(f"{order}HHIH2x", entries[:whole]):
        if tag == _ORIENTATION:
            return value if (kind, values) == (_SHORT, 1) and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT

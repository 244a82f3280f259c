"""The orientation in EXIF data: read wherever it is, never beyond its bytes, and images turned by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.columns.exif import orientation
from headrace.transforms.columns.inputs import ColumnRules, plan_inputs
from headrace.transforms.models.spec import TensorSpec
from tests.support.exif_images import SIDES, exif, jpeg, picture, seen, segment, stored

ORIENTATIONS = sorted(SIDES)
XMP = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")


def of(data: bytes) -> int:
    return orientation(memoryview(data))


def read(
    encoded: list[bytes], height: int | None, width: int | None, channels: int = 3, dtype: str = "uint8", **rules: Any
) -> Any:
    size = "own" if height is None or width is None else (height, width)
    spec = TensorSpec("x", dtype, (None, height, width, channels))
    plan = plan_inputs(
        pa.schema([("x", pa.binary())]), {"x": spec}, {}, rules=ColumnRules(decode_image=(("x", size),), **rules)
    )
    return plan.tensors(pa.record_batch({"x": pa.array(encoded, pa.binary())}))["x"].numpy()


ENTRY = st.tuples(st.integers(0, 65535).filter(lambda tag: tag != 0x0112), *[st.integers(0, 65535)] * 3)
BEFORE = st.lists(st.sampled_from([JFIF, XMP, b"\xff", segment(0xFE, b"a comment"), segment(0xDB, bytes(65))]))


@given(
    st.sampled_from(ORIENTATIONS), st.booleans(), st.lists(ENTRY, max_size=9), st.integers(0, 30), BEFORE.map(b"".join)
)
@settings(max_examples=50)
def test_what_is_written_is_read(number: int, big: bool, entries: list[Any], gap: int, before: bytes) -> None:
    written = exif(number, big=big, before=entries, gap=gap)
    assert of(b"\xff\xd8" + before + written + b"\xff\xda") == number


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda end: b"\xff\xd8" + exif(6)[:24] + end))
def test_any_bytes_have_an_orientation(data: bytes) -> None:
    assert of(data) in ORIENTATIONS


@given(st.data())
def test_a_changed_byte_and_a_cut_end_do_no_harm(data: st.DataObject) -> None:
    whole = b"\xff\xd8" + JFIF + exif(6, big=data.draw(st.booleans()), before=[(1, 3, 1, 5)])
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(changed) - 1)), max_size=3)) if changed else ():
        changed[place] = data.draw(st.integers(0, 255))
    assert of(bytes(changed)) in ORIENTATIONS


@pytest.mark.parametrize(
    "data",
    [
        exif(0),
        exif(9),
        exif(6, kind=4),
        XMP,
        b"\xff\xda\0\2" + exif(6),
        b"\xff\xd9\0\2" + exif(6),
        b"\xff\xe0\0\1" + exif(6),
        segment(0xE1, b"Exif\0\0") + exif(6),
        segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(20)),
        segment(0xE0, b"") * 64 + exif(6),
    ],
    ids=["0", "9", "long", "xmp", "in-scan", "after-end", "no-size", "second", "beyond", "too-far"],
)
def test_what_says_nothing_is_upright(data: bytes) -> None:
    assert of(b"\xff\xd8" + data) == 1


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_pixels_are_turned_and_back(number: int) -> None:
    pixels = picture(4, 7)
    assert np.array_equal(seen(stored(pixels, number), number), pixels)
    assert number == 1 or not np.array_equal(stored(picture(5, 5), number), picture(5, 5))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_all_orientations_equal_the_upright_one(channels: int) -> None:
    """To the bit, what TensorFlow decodes turned by numpy; to the decoder's tolerance, the image that was stored upright."""
    import tensorflow as tf

    pixels = picture(32, 48, channels)
    encoded = [jpeg(pixels, number, big=number % 2 == 0) for number in ORIENTATIONS]
    plain = [tf.io.decode_jpeg(one, channels=channels).numpy() for one in encoded]
    expected = np.stack([seen(one, number) for one, number in zip(plain, ORIENTATIONS, strict=True)])
    found = read(encoded, 32, 48, channels)
    assert np.array_equal(found, expected)
    upright = read([tf.io.encode_jpeg(pixels, quality=95).numpy()], 32, 48, channels)
    assert np.abs(found.astype(int) - upright).max() <= 3
    for one, row in zip(encoded, expected, strict=True):
        assert np.array_equal(read([one], None, None, channels)[0], row)
    assert np.array_equal(read([encoded[5], encoded[7]], None, None, channels), expected[[5, 7]])
    same = [encoded[i] for i in (1, 2, 3)]
    assert np.array_equal(read(same, 32, 48, channels, ignore_exif=True), np.stack([plain[i] for i in (1, 2, 3)]))


def test_an_image_is_turned_before_it_is_resized() -> None:
    import tensorflow as tf

    encoded = jpeg(picture(40, 24), 6)
    upright = seen(tf.io.decode_jpeg(encoded).numpy(), 6)
    found = read([encoded], 20, 16, dtype="float32")
    assert np.array_equal(found[0], tf.image.resize(upright, (20, 16), antialias=True))
    stretched = read([encoded], 20, 16, dtype="float32", ignore_exif=True)
    assert np.array_equal(stretched[0], tf.image.resize(tf.io.decode_jpeg(encoded), (20, 16), antialias=True))


def test_a_png_is_as_it_is_stored() -> None:
    import tensorflow as tf

    png = tf.io.encode_png(picture(6, 4)).numpy()
    assert np.array_equal(read([png, jpeg(picture(6, 4), 3)], 6, 4)[0], picture(6, 4))

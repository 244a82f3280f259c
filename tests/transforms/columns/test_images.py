"""JPEG and PNG bytes to the model's pixels, and everything that is no such image."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.transforms.columns import images
from headrace.transforms.columns.image_sizes import ImageSize
from headrace.transforms.columns.inputs import ColumnRules, InputPlan, plan_inputs
from headrace.transforms.errors import ColumnError, NullFeature
from headrace.transforms.models.spec import TensorSpec
from headrace.transforms.nested_arrow import schema_of


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Any:
    """Smooth uint8 pixels, so that JPEG keeps them nearly."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    return ((x * 5 + y * 3 + c * 40 + seed * 17) % 200).astype(np.uint8)


def jpeg(pixels: Any) -> bytes:
    import tensorflow as tf

    return tf.io.encode_jpeg(pixels, quality=95).numpy()


def png(pixels: Any) -> bytes:
    import tensorflow as tf

    return tf.io.encode_png(pixels).numpy()


def claiming(data: bytes, height: int, width: int) -> bytes:
    """The image with another size in its header."""
    if data.startswith(b"\x89PNG"):
        return data[:16] + struct.pack(">II", width, height) + data[24:]
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def plan_for(
    column: pa.Array[Any], *inner: int | None, dtype: str = "float32", size: ImageSize = (8, 6), **rules: Any
) -> InputPlan:
    allowed = ColumnRules(decode_image=(("x", size),), **rules)
    inputs = {"x": TensorSpec("x", dtype, (None, *inner))}
    return plan_inputs(pa.schema([("image", column.type)]), inputs, {"x": ("image",)}, rules=allowed)


def read(column: pa.Array[Any], *inner: int | None, **given: Any) -> Any:
    plan = pickle.loads(pickle.dumps(plan_for(column, *inner, **given)))
    return plan.tensors(pa.record_batch({"image": column}), where="f", first_row=100)["x"]


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [
        (1, "uint8"),
        (3, "uint8"),
        (4, "uint8"),
        (3, "int32"),
        (4, "float16"),
        (3, "bfloat16"),
        (1, "float32"),
        (3, "float64"),
    ],
)
def test_a_png_gives_its_very_pixels_unscaled(channels: int, dtype: str) -> None:
    pixels = [picture(8, 6, channels, seed) for seed in range(3)]
    tensor = read(pa.array([png(one) for one in pixels]).slice(1), 8, 6, channels, dtype=dtype)
    assert tensor.dtype.name == dtype
    assert tensor.numpy().astype("int64").tolist() == np.stack(pixels[1:]).tolist()


def test_a_jpeg_gives_what_tensorflow_decodes() -> None:
    import tensorflow as tf

    encoded = [jpeg(picture(8, 6, 3, seed)) for seed in range(5)]
    expected = np.stack([tf.io.decode_jpeg(one, channels=3).numpy() for one in encoded])
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        column = pa.array([b"", *encoded], pa.binary()).cast(kind).slice(1)
        assert np.array_equal(read(column, None, None, 3), expected)
    assert np.array_equal(read(pa.array([encoded[0]] * 3).dictionary_encode(), 8, 6, 3), expected[[0, 0, 0]])


def test_channels_are_the_model_s_and_three_where_it_does_not_say() -> None:
    column = pa.array([jpeg(picture(8, 6)), png(picture(8, 6, 1)), png(picture(8, 6, 4))])
    assert read(column, 8, 6, 1).shape == (3, 8, 6, 1)
    assert read(column, 8, 6).shape == (3, 8, 6)
    assert read(column, None, None, None).shape == (3, 8, 6, 3)
    assert read(column[1:], 8, 6, 4).shape == (2, 8, 6, 4)
    gray = read(column, 8, 6, 3).numpy()[1]
    assert np.array_equal(gray[..., 0], gray[..., 2])


def test_an_image_of_another_size_is_resized_with_antialiasing() -> None:
    import tensorflow as tf

    sources = [picture(32, 18), picture(4, 3), picture(8, 6), picture(6, 8)]
    expected = [tf.image.resize(one, (8, 6), antialias=True).numpy() for one in sources]
    column = pa.array([png(one) for one in sources])
    assert np.array_equal(read(column, 8, 6, 3), np.stack(expected))
    assert np.array_equal(read(column, 8, 6, 3, dtype="uint8"), np.round(expected))
    wide = jpeg(picture(9, 31))
    decoded = tf.image.resize(tf.io.decode_jpeg(wide, channels=3), (8, 6), antialias=True)
    assert np.array_equal(read(pa.array([wide]), 8, 6, 3)[0], decoded)


def test_lists_of_images_and_no_images() -> None:
    one, two = picture(8, 6, 3, 1), picture(8, 6, 3, 2)
    column = pa.array([[png(one), png(two)], [png(two), png(one)]])
    assert np.array_equal(read(column, 2, 8, 6, 3), [[one, two], [two, one]])
    assert read(pa.array([], pa.binary()), 8, 6, 3).shape == (0, 8, 6, 3)
    assert plan_for(column, 2, 8, 6, 3).row_nbytes == 2 * 8 * 6 * 3 * 4


def test_an_image_of_its_own_size() -> None:
    for dtype, size in (("uint8", (8, 6)), ("float32", (31, 5)), ("uint8", (1, 1))):
        pixels = picture(*size)
        found = read(pa.array([png(pixels)]), None, None, 3, dtype=dtype, size="own")
        assert (found.shape, found.dtype.name) == ((1, *size, 3), dtype)
        assert np.array_equal(found[0], pixels)
    column = pa.array([png(picture(8, 6, 4)), jpeg(picture(3, 9))])
    assert read(column[:1], None, None, None, size="own").shape == (1, 8, 6, 3)
    assert read(column[:1], None, None, 4, size="own").shape == (1, 8, 6, 4)
    assert read(column[:0], None, None, 3, size="own").shape == (0, 0, 0, 3)
    assert plan_for(column, None, None, 3, size="own").row_nbytes is None
    with pytest.raises(ColumnError, match=r"in row 100.*as --decode_image reads them.*\[100000 100000\]"):
        read(pa.array([claiming(GOOD[0], 100_000, 100_000)]), None, None, 3, size="own")


@pytest.mark.parametrize(
    ("kind", "inner", "said"),
    [
        (pa.binary(), (8, 6, 3), "Say --decode_image x=8x6: images are resized to it"),
        (pa.binary(), (None, 6, 3), "own cannot give tensor 'x'. Expected: a tensor of images of any size"),
        (pa.binary(), (None, None), "--decode_image x=own cannot give tensor 'x'"),
        (pa.binary(), (2, None, None, 3), "--decode_image x=own cannot give tensor 'x'"),
        (pa.binary(), (None, None, 2), "with 1, 3 or 4 channels"),
        (pa.list_(pa.binary()), (None, None, 3), "--decode_image x=… takes a column of binary or strings"),
    ],
)
def test_what_has_no_room_for_any_size_is_refused(kind: pa.DataType, inner: tuple[int | None, ...], said: str) -> None:
    with pytest.raises(ColumnError, match=re.escape(said)):
        plan_for(pa.array([], kind), *inner, size="own")


def test_sixteen_bits_become_eight() -> None:
    import tensorflow as tf

    deep = np.array([[[0], [255], [256], [65535]]], np.uint16)
    column = pa.array([tf.io.encode_png(deep).numpy()])
    assert read(column, 1, 4, 1, size=(1, 4)).numpy().ravel().tolist() == [0, 0, 1, 255]


GOOD = [png(picture(8, 6)), jpeg(picture(8, 6))]


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (b"", "neither JPEG nor PNG"),
        (b"\xff\xd8\xff", "Invalid JPEG data"),
        (b"\x89PNG\r\n\x1a\n", "neither JPEG nor PNG"),
        (b"GIF89a" + bytes(40), "neither JPEG nor PNG"),
        (b"BM" + bytes(60), "neither JPEG nor PNG"),
        (GOOD[0][:60], "Invalid PNG data"),
        (GOOD[1][:300], "Invalid JPEG data"),
        (claiming(GOOD[0], 100_000, 100_000), "height and width] [100000 100000]"),
        (claiming(GOOD[0], 2**32 - 1, 2**32 - 1), "height and width] [4294967295 4294967295]"),
        (claiming(GOOD[1], 65_000, 65_000), "height and width] [65000 65000]"),
        (claiming(GOOD[0], 0, 6), ""),
    ],
    ids=[
        "empty",
        "jpeg-start",
        "png-start",
        "gif",
        "bmp",
        "png-cut",
        "jpeg-cut",
        "png-bomb",
        "png-huge",
        "jpeg-bomb",
        "none",
    ],
)
@pytest.mark.parametrize("place", [0, 2, 6])
def test_what_cannot_be_decoded_is_told_with_its_row(bad: bytes, found: str, place: int) -> None:
    rows = (GOOD * 4)[:7]
    rows[place] = bad
    rows[6] = bad
    bound = "of at most 64000000 pixels that decodes to 3 channels"
    said = re.escape(f"Expected: a JPEG or PNG image, as --decode_image reads them, {bound}. Found: ")
    with pytest.raises(
        ColumnError, match=f"Column 'image' of f cannot be read in row {100 + place}\\. {said}"
    ) as caught:
        read(pa.array(rows), 8, 6, 3)
    assert found in caught.value.found
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400, "where in TensorFlow's graph is nobody's concern"


def test_a_jpeg_for_four_channels_and_a_null_are_told_with_their_row() -> None:
    with pytest.raises(ColumnError, match=r"in row 101.*JPEG does not support 4 channels"):
        read(pa.array([png(picture(8, 6, 4)), GOOD[1]]), 8, 6, 4)
    with pytest.raises(NullFeature, match="Column 'image' of f is null in row 101"):
        read(pa.array([GOOD[0], None, b"bad"]), 8, 6, 3)
    with pytest.raises(ColumnError, match="cannot be read in row 100"):
        read(pa.array([b"bad", None]), 8, 6, 3)


@pytest.mark.parametrize(
    ("kind", "inner", "dtype", "rules", "said"),
    [
        (pa.int32(), (8, 6, 3), "float32", {}, "takes a column of binary or strings that hold JPEG or PNG files"),
        (pa.list_(pa.uint8()), (8, 6, 3), "float32", {}, "takes a column of binary or strings"),
        (
            pa.binary(),
            (6, 8, 3),
            "float32",
            {},
            "Expected: float32 [None, 6, 8, 3]. Found: binary, decoded to [8, 6, 3]",
        ),
        (pa.binary(), (8, 6, 2), "float32", {}, "--decode_image x=8x6 cannot give tensor 'x'"),
        (pa.binary(), (8, 6, 3), "int8", {}, "a numeric tensor that holds 0 to 255"),
        (pa.binary(), (8, 6, 3), "string", {}, "a numeric tensor that holds 0 to 255"),
        (pa.binary(), (144,), "float32", {}, "cannot give tensor 'x'"),
        (pa.binary(), (8, 6, 3), "float32", {"fill": (("x", "0"),)}, "--fill and --decode_image both name tensor 'x'"),
        (pa.binary(), (8, 6, 3), "float32", {"cast": ("x",)}, "--cast and --decode_image both name tensor 'x'"),
    ],
)
def test_what_cannot_become_the_tensor_is_refused_before_data(
    kind: pa.DataType, inner: tuple[int, ...], dtype: str, rules: Any, said: str
) -> None:
    with pytest.raises(ColumnError, match=re.escape(said)):
        plan_for(pa.array([], kind), *inner, dtype=dtype, **rules)


def test_the_column_of_bytes_is_found_for_the_model_s_only_input() -> None:
    schema = schema_of({"id": pa.int64(), "jpeg": pa.binary(), "score": pa.float32()})
    inputs = {"x": TensorSpec("x", "float32", (None, 8, 6, 3))}
    assert plan_inputs(schema, inputs, {}, rules=ColumnRules(decode_image=(("x", (8, 6)),))).columns == ("jpeg",)


def test_threads_share_one_graph_that_is_never_traced_again() -> None:
    images._decoder.cache_clear()
    column = pa.array([png(picture(8, 6, 3, seed)) for seed in range(20)])
    plan = plan_for(column, 8, 6, 3)
    expected = np.stack([picture(8, 6, 3, seed) for seed in range(20)])

    def decoded(start: int) -> bool:
        batch = pa.record_batch({"image": column.slice(start)})
        return np.array_equal(plan.tensors(batch)["x"], expected[start:])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(decoded, [*range(20)] * 3))
    assert images._decoder.cache_info().misses == 1


def test_images_come_through_parquet() -> None:
    import pyarrow.parquet as pq

    pixels = [picture(8, 6, 3, seed) for seed in range(4)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [png(one) for one in pixels]}), sink)
    (batch,) = pq.ParquetFile(sink).iter_batches()
    assert np.array_equal(read(batch["image"], 8, 6, 3), pixels)


_DAMAGED = """
import ctypes, sys
import pyarrow as pa
import tensorflow as tf
from headrace.transforms.columns.images import Images
from headrace.transforms.columns.values import BadValueError
jpeg = tf.io.encode_jpeg(tf.cast(tf.random.uniform((40, 40, 3), 0, 255, tf.int32), tf.uint8)).numpy()
for data in (jpeg[:300], jpeg[:200] + b"\\xff\\x00junk" + jpeg[260:], b"\\xff\\xd8\\xff junk", jpeg):
    print("BEGIN", file=sys.stderr, flush=True)
    try:
        Images("uint8", decoded=pa.binary(), size=(40, 40, 3)).tensor(pa.array([data]), (1, 40, 40, 3))
    except BadValueError as error:
        assert "--decode_image" in str(error.expected), error.expected
print("END", file=sys.stderr, flush=True)
library = ctypes.CDLL(None)
library.fputs(b"C writes again", ctypes.c_void_p.in_dll(library, "stderr"))
library.fflush(None)
"""


def test_no_line_of_libjpeg_is_printed() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _DAMAGED], capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    assert run.returncode == 0, run.stderr
    said = run.stderr.partition("BEGIN")[2]
    assert re.sub(r"\s+", " ", said) == " BEGIN BEGIN BEGIN END C writes again"

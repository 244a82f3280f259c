"""JPEG and PNG bytes to pixels: one graph for a whole batch, in which no row is a Python object.

Images come as `height` x `width` x `channels` values 0 to 255, unscaled. A JPEG is turned by its EXIF data. Images of another
size are resized (bilinear, with antialiasing, to the nearest whole number where the tensor holds whole numbers), unless each
keeps its own size. Formats:
https://www.w3.org/TR/png-3/#11IHDR, https://www.w3.org/Graphics/JPEG/itu-t81.pdf
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..models.streaming.dlpack import to_tensor
from .exif import UPRIGHT, orientation
from .libjpeg import quiet_libjpeg
from .values import BadValueError, Bytes, offsets

if TYPE_CHECKING:
    import tensorflow as tf

# A few kilobytes can claim any size; the decoder would make room for it.
MOST_PIXELS = 64_000_000
# Shards run in threads of their own: more than one image at a time saves no CPU, and each may take MOST_PIXELS of memory.
_IMAGES_AT_ONCE = 1
_JPEG, _PNG, _PNG_HEADER = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", 24

Size = tuple[int | None, int | None, int]

_tracing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Images(Bytes):
    """Encoded images. Each becomes `size` = (height, width, channels) values of `dtype`.

    If height and width are None, each image keeps its own; all images of one array must then have the same ones. `exif` is
    whether images are turned by their EXIF data.
    """

    size: Size = (0, 0, 0)
    exif: bool = True

    @property
    def dims(self) -> tuple[int | None, ...]:
        return self.size

    def tensor(self, array: pa.Array[Any], shape: tuple[int, ...]) -> tf.Tensor:
        import tensorflow as tf

        if not len(array):
            return tf.zeros([dim or 0 for dim in shape], self.dtype)
        encoded, turns = Bytes.tensor(self, array, (len(array),)), self._orientations(array)
        with _tracing:
            decode = _decoder(self.size, self.dtype)
        try:
            with quiet_libjpeg():
                pixels = decode(encoded, turns)
            return pixels if None in self.size else tf.reshape(pixels, shape)
        except tf.errors.InvalidArgumentError:
            with quiet_libjpeg():
                bad = _first_bad(decode, encoded, turns)
            if bad is None:
                raise
            index, why = bad
            raise BadValueError(
                index,
                expected=f"a JPEG or PNG image, as --decode_image reads them, of at most {MOST_PIXELS} pixels that decodes to "
                f"{self.size[2]} channels",
                found=why,
                cure="Fix or drop that row, or let such rows go to dead letters with --on_error=dead_letter.",
            ) from None

    def _orientations(self, array: pa.Array[Any]) -> tf.Tensor:
        """Of each image, from 1 to 8, as EXIF numbers them."""
        data = array.buffers()[2]
        if not self.exif or data is None:
            return to_tensor(np.full(len(array), UPRIGHT, np.int32))
        edges, view = offsets(array).tolist(), memoryview(data).cast("B")
        found = (orientation(view[start:end]) for start, end in pairwise(edges))
        return to_tensor(np.fromiter(found, np.int32, len(array)))


def _first_bad(decode: Any, encoded: tf.Tensor, turns: tf.Tensor) -> tuple[int, str] | None:
    """The first image that fails, by halves, and why."""
    import tensorflow as tf

    first, count = 0, len(encoded)
    while count:
        half = (count + 1) // 2
        try:
            decode(encoded[first : first + half], turns[first : first + half])
            first, count = first + half, count - half
        except tf.errors.InvalidArgumentError as error:
            if half == 1:
                # TensorFlow's message has the place of the graph's code, then the fault, then its place in the graph.
                return first, str(error.message).split("\n\t [[")[0].strip().rpartition("\n")[2]
            count = half
    return None


@cache
def _decoder(size: Size, dtype: str) -> Any:
    """A concrete function: strings [n] and their orientations [n] to pixels [n, *size]; it is traced once in a process."""
    import tensorflow as tf

    height, width, channels = size
    target = tf.as_dtype(dtype)

    def jpeg_size(data: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.int64)

    def png_size(data: tf.Tensor) -> tf.Tensor:
        header = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.uint8)
        bytes_of = tf.reshape(tf.cast(header, tf.int64), (2, 4))
        return tf.reverse(tf.reduce_sum(bytes_of * tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64), axis=1), [0])

    def upright(pixels: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
        """Orientations 5 to 8 are transposed; then some are mirrored top to bottom, some left to right."""
        pixels = tf.cond(turn >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
        mirrored = [tf.reduce_any(tf.equal(turn, some)) for some in ((3, 4, 7, 8), (2, 3, 6, 7))]
        return tf.reverse(pixels, tf.where(mirrored)[:, 0])

    def pixels_of(data: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
        jpeg = tf.equal(tf.strings.substr(data, 0, len(_JPEG)), _JPEG)
        png = tf.equal(tf.strings.substr(data, 0, len(_PNG)), _PNG) & (tf.strings.length(data) >= _PNG_HEADER)
        known = tf.debugging.Assert(jpeg | png, ["neither JPEG nor PNG"])
        with tf.control_dependencies([known]):
            sides = tf.cond(jpeg, lambda: jpeg_size(data), lambda: png_size(data))
        # Each alone too, since the product of two sizes of 32 bits overflows.
        bounded = (tf.reduce_max(sides) <= MOST_PIXELS) & (sides[0] * sides[1] <= MOST_PIXELS)
        small = tf.debugging.Assert(bounded, ["height and width", sides])
        with tf.control_dependencies([small]):
            pixels = tf.cond(
                jpeg,
                lambda: tf.io.decode_jpeg(data, channels=channels),
                lambda: tf.io.decode_png(data, channels=channels),
            )
        pixels = tf.cond(tf.equal(turn, UPRIGHT), lambda: pixels, lambda: upright(pixels, turn))
        pixels = tf.ensure_shape(pixels, (None, None, channels))
        if height is None:
            return tf.cast(pixels, target)
        same_size = tf.reduce_all(tf.equal(tf.shape(pixels)[:2], (height, width)))
        # TensorFlow 2.21 runs an `ensure_shape` within a branch even where the other branch is taken.
        return tf.ensure_shape(tf.cond(same_size, lambda: tf.cast(pixels, target), lambda: resized(pixels)), size)

    def resized(pixels: tf.Tensor) -> tf.Tensor:
        scaled = tf.image.resize(pixels, (height, width), antialias=True)
        return tf.cast(scaled if target.is_floating else tf.round(scaled), target)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int32)], autograph=False)
    def decode(encoded: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
        # On a GPU, each image would cross to it and back to be resized.
        with tf.device("/CPU:0"):
            return tf.map_fn(
                lambda image: pixels_of(*image),
                (encoded, turns),
                fn_output_signature=tf.TensorSpec(size, target),
                parallel_iterations=_IMAGES_AT_ONCE,
            )

    return decode.get_concrete_function()

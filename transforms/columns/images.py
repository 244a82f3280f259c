"""JPEG and PNG bytes to pixels: one graph for a whole batch, in which no row is a Python object.

Images come as `height` x `width` x `channels` values 0 to 255, unscaled; those of another size are resized (bilinear, with
antialiasing, to the nearest whole number where the tensor holds whole numbers). Formats:
https://www.w3.org/TR/png-3/#11IHDR, https://www.w3.org/Graphics/JPEG/itu-t81.pdf
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .libjpeg import quiet_libjpeg
from .values import BadValueError, Bytes

if TYPE_CHECKING:
    import tensorflow as tf

# A few kilobytes can claim any size; the decoder would make room for it.
MOST_PIXELS = 64_000_000
# Shards run in threads of their own: more than one image at a time saves no CPU, and each may take MOST_PIXELS of memory.
_IMAGES_AT_ONCE = 1
_JPEG, _PNG, _PNG_HEADER = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", 24

_tracing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Images(Bytes):
    """Encoded images. Each becomes `size` = (height, width, channels) values of `dtype`."""

    size: tuple[int, int, int] = (0, 0, 0)

    @property
    def dims(self) -> tuple[int, ...]:
        return self.size

    def tensor(self, array: pa.Array[Any], shape: tuple[int, ...]) -> tf.Tensor:
        import tensorflow as tf

        encoded = Bytes.tensor(self, array, (len(array),))
        with _tracing:
            decode = _decoder(self.size, self.dtype)
        try:
            with quiet_libjpeg():
                return tf.reshape(decode(encoded), shape)
        except tf.errors.InvalidArgumentError:
            with quiet_libjpeg():
                bad = _first_bad(decode, encoded)
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


def _first_bad(decode: Any, encoded: tf.Tensor) -> tuple[int, str] | None:
    """The first image that fails, by halves, and why."""
    import tensorflow as tf

    first, count = 0, len(encoded)
    while count:
        half = (count + 1) // 2
        try:
            decode(encoded[first : first + half])
            first, count = first + half, count - half
        except tf.errors.InvalidArgumentError as error:
            if half == 1:
                # TensorFlow's message has the place of the graph's code, then the fault, then its place in the graph.
                return first, str(error.message).split("\n\t [[")[0].strip().rpartition("\n")[2]
            count = half
    return None


@cache
def _decoder(size: tuple[int, int, int], dtype: str) -> Any:
    """A concrete function: strings [n] to pixels [n, *size]; it is traced once in a process."""
    import tensorflow as tf

    height, width, channels = size
    target = tf.as_dtype(dtype)

    def jpeg_size(data: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.int64)

    def png_size(data: tf.Tensor) -> tf.Tensor:
        header = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.uint8)
        bytes_of = tf.reshape(tf.cast(header, tf.int64), (2, 4))
        return tf.reverse(tf.reduce_sum(bytes_of * tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64), axis=1), [0])

    def pixels_of(data: tf.Tensor) -> tf.Tensor:
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
        pixels = tf.ensure_shape(pixels, (None, None, channels))
        same_size = tf.reduce_all(tf.equal(sides, (height, width)))
        # TensorFlow 2.21 runs an `ensure_shape` within a branch even where the other branch is taken.
        return tf.ensure_shape(tf.cond(same_size, lambda: tf.cast(pixels, target), lambda: resized(pixels)), size)

    def resized(pixels: tf.Tensor) -> tf.Tensor:
        scaled = tf.image.resize(pixels, (height, width), antialias=True)
        return tf.cast(scaled if target.is_floating else tf.round(scaled), target)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        # On a GPU, each image would cross to it and back to be resized.
        with tf.device("/CPU:0"):
            return tf.map_fn(
                pixels_of, encoded, fn_output_signature=tf.TensorSpec(size, target), parallel_iterations=_IMAGES_AT_ONCE
            )

    return decode.get_concrete_function()

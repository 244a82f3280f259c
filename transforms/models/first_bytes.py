"""Recognises files that are often found in a model's place by their first bytes."""

from __future__ import annotations

import re

from ..errors import NotAModel

FIRST_BYTES = 256
SAVED_MODEL = b"\x08\x01\x12"
"""How saved_model.pb begins: its version, 1, and its first graph."""
_NODE_NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_.\\\\/>-]*")


def other_file(uri: str, size: int, start: bytes) -> NotAModel | None:
    """What a file of `size` bytes in a model's place is, by its first `FIRST_BYTES`; None where they do not show it."""
    if start.startswith(b"version https://git-lfs"):
        return NotAModel(
            f"{uri} is a pointer of Git LFS, not the model itself",
            expected="the file that the pointer names",
            found=f"{size} bytes of text that begin with 'version https://git-lfs'",
            cure="Run `git lfs pull` where it was cloned, and copy the file from there.",
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return NotAModel(
            f"{uri} is a web page, not a model",
            expected="a model, as it was saved",
            found=f"{size} bytes that begin with {text[:15].decode(errors='replace')!r}",
            cure="The address may lead to a page about the file, or to a login. Download the file itself again.",
        )
    if start.startswith(SAVED_MODEL):
        return NotAModel(
            f"{uri} is the graph of a SavedModel, which is a folder",
            expected="the folder that holds saved_model.pb and variables",
            found=f"its saved_model.pb of {size} bytes alone",
            cure="Name the folder that holds this file.",
        )
    if _is_graph(start):
        return NotAModel(
            f"{uri} is a frozen TensorFlow graph (GraphDef), which has no signatures",
            expected="the folder that holds saved_model.pb and variables, or a `.keras` file",
            found=f"a graph of {size} bytes whose inputs and outputs are not named",
            cure="Export the model with tf.saved_model.save: tf.compat.v1.wrap_function and prune give this graph a signature.",
        )
    return None


def _is_graph(start: bytes) -> bool:
    """Whether it begins as tensorflow.GraphDef does: with a node (field 1) that begins with its name, then its operation."""
    if start[:1] != b"\x0a":
        return False
    at = 1
    while at < len(start) and start[at] & 128:
        at += 1
    at += 1
    name = start[at + 2 : at + 2 + (start[at + 1] if at + 1 < len(start) else 0)]
    after = start[at + 2 + len(name) : at + 3 + len(name)]
    return start[at : at + 1] == b"\x0a" and bool(name) and _NODE_NAME.fullmatch(name) is not None and after == b"\x12"

"""Files that layers can open by path, and that no disk holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self

from ...errors import UnsupportedModel


class AssetFiles:
    """Asset files that live in memory alone, under paths that `open` takes: layers read their assets by path."""

    def __init__(self, contents: Mapping[str, bytes | bytearray]) -> None:
        self._contents = contents
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def folder(self, path: str) -> AssetFolder | None:
        prefix = f"{path}/" if path else ""
        if path and not any(name.startswith(prefix) for name in self._contents):
            return None
        return AssetFolder(self, prefix)

    def path(self, name: str) -> str:
        """A path at which the file can be opened for reading, or one at which there is nothing."""
        if name not in self._contents:
            return f"{AssetFolder.PLACE}/{name}"
        if name not in self._descriptors:
            if not hasattr(os, "memfd_create"):
                raise UnsupportedModel(
                    f"Asset {name!r} of the model can be read from a path only",
                    expected="Linux, where a path can lead to memory",
                    cure="Pass the vocabulary to the layer's constructor before saving, or export with model.export(…).",
                )
            self._descriptors[name] = descriptor = os.memfd_create("headrace-asset", os.MFD_CLOEXEC)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(self._contents[name])
        return f"/proc/self/fd/{self._descriptors[name]}"


class AssetFolder(str):
    """A folder's path whose joining with a file's name (`os.path.join`, `tf.io.gfile.join`, `+`) leads to memory."""

    PLACE = "/proc/self/fd/headrace-assets-in-memory"
    _files: AssetFiles
    _prefix: str

    def __new__(cls, files: AssetFiles, prefix: str) -> AssetFolder:
        folder = super().__new__(cls, cls.PLACE + "/")
        folder._files, folder._prefix = files, prefix
        return folder

    def __add__(self, name: str) -> str:
        return self._files.path(self._prefix + name.lstrip("/"))

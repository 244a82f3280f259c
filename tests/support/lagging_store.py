"""Memory stores that keep less than their promise: one lists late, one takes no notice of create-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headrace.transforms.storage import ObjectRef, Writer, memory

_MemoryStore = memory.MemoryStore


class LaggingStore(_MemoryStore):
    """Lists what stood when `hide` was last set; of what has come or gone since, it lists late what `hides` says of by URI."""

    hides: Callable[[str], bool]
    listed: dict[str, ObjectRef]

    @classmethod
    def hide(cls, hides: Callable[[str], bool]) -> None:
        cls.hides = staticmethod(hides)
        cls.listed = {uri: ref for uri, (ref, _) in memory.OBJECTS.items() if hides(uri)}

    def list(self, folder: str) -> Iterator[ObjectRef]:
        late = [ref for uri, ref in self.listed.items() if uri.startswith(folder)]
        yield from sorted([*late, *(ref for ref in super().list(folder) if not type(self).hides(ref.uri))])


class ReplacingStore(_MemoryStore):
    """Creates also where an object stands, as a store that does not know `If-None-Match` does."""

    def create(self, uri: str) -> Writer:
        writer = super().create(uri)
        commit = writer.commit

        def replacing() -> ObjectRef:
            memory.OBJECTS.pop(uri, None)
            return commit()

        writer.commit = replacing  # type: ignore[method-assign]
        return writer

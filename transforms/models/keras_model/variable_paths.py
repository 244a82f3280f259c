"""Which saved path belongs to which variable of a model that was built again.

A variable's path is made of the scopes that were open when it was made, which depends on how its model came to be: that of
a Sequential which was built layer by layer is `model/layer/kernel`, and `layer/kernel` once it is built from its configuration
(keras/src/backend/common/name_scope.py). Keras looks for equal paths and leaves all other variables at random values.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import UnsupportedModel

Path = tuple[str, ...]

# Layers without a name of their own are numbered, from what else the process has made.
_NUMBER = re.compile(r"_\d+$")


def owners(model: Any) -> dict[int, Path]:
    """For each variable, by id: the names of the layers that lead to it from the model on, and its own."""
    found: dict[int, Path] = {}
    waiting: list[tuple[Any, Path]] = [(model, tuple(model.name.split("/")))]
    seen = {id(model)}
    while waiting:
        layer, names = waiting.pop()
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
            found.setdefault(id(variable), (*names, *variable.name.split("/")))
        for child in reversed(layer._layers):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append((child, (*names, *child.name.split("/"))))
    return found


def matched(full: Mapping[int, Path], saved: Iterable[Path], uri: str) -> dict[int, Path]:
    """The saved path of each variable, where there is one: it has the same names in the same order, and perhaps fewer.

    A variable without a path is left out. Raises `UnsupportedModel` where several would do for several.
    """
    left = dict(full)
    paths = set(saved)
    found: dict[int, Path] = {}
    for plain in (lambda name: name, lambda name: _NUMBER.sub("", name)):
        found |= _matched_by(plain, left, paths, uri)
        left = {variable: names for variable, names in full.items() if variable not in found}
        paths -= set(found.values())
    return found


def _matched_by(plain: Any, full: Mapping[int, Path], paths: set[Path], uri: str) -> dict[int, Path]:
    by_end: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        by_end[tuple(map(plain, path[-2:]))].append(path)
    fitting = {
        variable: {
            path
            for length in (2, 1)
            for path in by_end.get(tuple(map(plain, names[-length:])), ())
            if _is_within(map(plain, path), map(plain, names))
        }
        for variable, names in full.items()
    }
    wanted_by: dict[Path, list[int]] = defaultdict(list)
    for variable, some in fitting.items():
        for path in some:
            wanted_by[path].append(variable)
    found: dict[int, Path] = {}
    certain = [variable for variable, some in fitting.items() if len(some) == 1]
    while certain:
        variable = certain.pop()
        if variable in found or not fitting[variable]:
            continue
        (path,) = fitting[variable]
        found[variable] = path
        for other in wanted_by[path]:
            if other != variable:
                fitting[other].discard(path)
                if len(fitting[other]) == 1:
                    certain.append(other)
    for variable, some in fitting.items():
        if some and variable not in found:
            raise UnsupportedModel(
                f"The names in {uri} do not show which array belongs to which variable",
                expected=f"one array for {'/'.join(full[variable])!r}",
                found=", ".join(sorted("/".join(path) for path in some)[:3]),
                cure="Save the model with model.save('….keras'), which keeps their places, or give each layer a name.",
            )
    return found


def _is_within(few: Iterable[str], many: Iterable[str]) -> bool:
    """Whether all of `few` are in `many`, in the same order."""
    rest = iter(many)
    return all(name in rest for name in few)

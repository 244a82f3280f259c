"""Beam inspects each method once, and finds what it found before."""

from __future__ import annotations

from types import MethodType

import apache_beam as beam
import pytest
from apache_beam.runners.common import MethodWrapper
from apache_beam.transforms import core, userstate

from headrace.transforms.beam import signatures
from headrace.transforms.beam.signatures import remember_signatures


class Counting(beam.DoFn):
    COUNT = userstate.CombiningValueStateSpec("count", sum)

    def process(self, element, start=0, count=beam.DoFn.StateParam(COUNT), *, late=False):  # type: ignore[no-untyped-def]
        yield element


def test_it_gives_what_beam_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "get_function_args_defaults", core.get_function_args_defaults)
    steps = [Counting(), core.CallableWrapperDoFn(lambda row, more=1: [row]), beam.DoFn()]

    def seen() -> list[object]:
        names = [(step, name) for step in steps for name in dir(step) if isinstance(getattr(step, name), MethodType)]
        assert len(names) > 60
        wrapped = [MethodWrapper(step, name) for step, name in names]
        return [[(method.args, method.defaults) for method in wrapped], *map(userstate.get_dofn_specs, steps)]

    monkeypatch.setattr(core, "get_function_args_defaults", signatures._inspect)
    expected = seen()
    remember_signatures()
    assert seen() == expected
    inspected: list[object] = []

    def watched(function: object) -> tuple[list[str], list[object]]:
        inspected.append(function)
        return [], []

    monkeypatch.setattr(signatures, "_inspect", watched)
    # Beam still asks by that name. Of the second step it inspects the function itself, which is not a method.
    assert seen()[1:] == expected[1:]
    assert not any(isinstance(function, MethodType) for function in inspected)


def test_a_caller_that_changes_its_answer_changes_no_other() -> None:
    method = Counting().process
    names, defaults = signatures._remembered(method)
    names.clear()
    defaults.clear()
    assert signatures._remembered(method)[0] == ["element", "start", "count"]
    assert signatures._remembered(method)[1][0] == 0

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transforms.bounded_json import NotJson, parse_json, parse_json_object
from headrace.transforms.errors import OutputConflict
from headrace.transforms.jobs.job import stored_object
from headrace.transforms.storage import open_store
from headrace.transforms.storage.memory import put

HOSTILE = {
    "deep lists": b"[" * 200_000,
    "closed deep lists": b"[" * 900 + b"]" * 900,
    "deep lists below Python's own bound": b"[" * 300 + b"]" * 300,
    "deep objects": b'{"a":' * 200_000 + b"1",
    "deep objects in turns": b'[{"a":' * 300 + b"1" + b"}]" * 300,
    "a giant number": b'{"rows":' + b"9" * 5_000_000 + b"}",
    "a long number": b'{"rows":' + b"9" * 41 + b"}",
    "a giant float": b'{"rows":0.' + b"9" * 5_000_000 + b"}",
    "an exponent": b'{"rows":1e999}',
    "NaN": b'{"rows":NaN}',
    "an infinity": b'{"rows":-Infinity}',
    "a key twice": b'{"a":1,"a":2}',
    "a key twice within": b'{"b":[{"a":1,"c":2,"a":2}]}',
    "no UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "cut short": b'{"a":',
    "nothing": b"",
    "something after it": b"{} {}",
    "a raw line feed in a text": b'{"a":"\n"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once(name: str) -> None:
    start = time.process_time()
    with pytest.raises(NotJson):
        parse_json(HOSTILE[name])
    ref = put("memory://bounded_json/job.json", HOSTILE[name])
    with pytest.raises(OutputConflict, match=r"bounded_json/job\.json"):
        stored_object(open_store("memory://bounded_json"), ref)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_another_value_than_an_object_is_refused_where_one_is_wanted(text: bytes) -> None:
    assert parse_json(text) == json.loads(text)
    with pytest.raises(NotJson, match="instead of an object"):
        parse_json_object(text)


def test_many_keys_take_time_by_their_number() -> None:
    text = "{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"7":0}'
    start = time.process_time()
    with pytest.raises(NotJson, match="two keys"):
        parse_json(text)
    assert time.process_time() - start < 3


def test_keras_writes_numbers_that_are_not_finite() -> None:
    value = parse_json('{"a":[NaN,Infinity,-Infinity,1e999]}', not_finite=True)["a"]
    assert math.isnan(value[0])
    assert value[1:] == [math.inf, -math.inf, math.inf]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=30, deadline=None)
@given(plain)
def test_there_and_back(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == value
    assert parse_json(b"\xef\xbb\xbf" + text.encode()) == value

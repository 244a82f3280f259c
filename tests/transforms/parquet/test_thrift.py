from hypothesis import given
from hypothesis import strategies as st

from headrace.transforms.parquet.thrift import I64, integers, number


@st.composite
def varints(draw: st.DrawFn) -> bytes:
    """Up to ten bytes: of the last, Thrift's readers take one bit."""
    more = draw(st.lists(st.integers(128, 255), max_size=9))
    return bytes([*more, draw(st.integers(0, 127))])


@given(st.lists(varints(), max_size=20))
def test_many_integers_at_once_are_each_of_them(texts: list[bytes]) -> None:
    assert integers(b"".join(texts)).tolist() == [number(text, I64) for text in texts]

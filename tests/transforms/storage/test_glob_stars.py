import itertools

import pytest

from headrace.transforms.storage.store import glob_regex


@pytest.mark.parametrize("stars", [3, 5, 51])
def test_many_stars_in_a_row_are_as_two(stars: int) -> None:
    """Each star alone would make a regular expression try every way to share a name among them, for ever."""
    many, two = glob_regex(f"a{'*' * stars}b"), glob_regex("a**b")
    names = ["".join(letters) for letters in itertools.product("ab/", repeat=4)]
    assert [bool(many.fullmatch(name)) for name in names] == [bool(two.fullmatch(name)) for name in names]
    assert many.fullmatch("a" * 60) is None


def test_folders_after_stars_stay_folders() -> None:
    assert glob_regex("a****/b").fullmatch("ab")
    assert glob_regex("a***/b").fullmatch("ax/y/b")
    assert not glob_regex("a***/b").fullmatch("ab")
    assert glob_regex("**/**/**/b").fullmatch("x/y/b")
    assert glob_regex("**/" * 40 + "b").fullmatch("x/" * 40) is None

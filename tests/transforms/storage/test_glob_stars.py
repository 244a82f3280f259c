import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("part", ["*a", "*?", "*[a]"])
def test_stars_between_letters_do_not_try_every_way(part: str) -> None:
    assert glob_regex(part * 30 + "b").fullmatch("a" * 200) is None
    assert glob_regex(part * 30).fullmatch("a" * 200)


def plainly(pattern: str, name: str) -> bool:
    """The rules, one by one: every way is tried."""
    if not pattern:
        return not name
    if pattern.startswith("**/"):
        heads = [at + 1 for at, letter in enumerate(name) if letter == "/" and at and name[at - 1] != "/"]
        heads = [at for at in heads if "//" not in name[:at] and not name.startswith("/")]
        return plainly(pattern[3:], name) or any(plainly(pattern[3:], name[at:]) for at in heads)
    if pattern.startswith("**"):
        return any(plainly(pattern[2:], name[at:]) for at in range(len(name) + 1))
    if pattern[0] == "*":
        end = (name + "/").index("/")
        return any(plainly(pattern[1:], name[at:]) for at in range(end + 1))
    fits = name[:1] not in ("", "/") if pattern[0] == "?" else name[:1] == pattern[0]
    return fits and plainly(pattern[1:], name[1:])


@given(st.lists(st.sampled_from(["*", "**/", "?", "a", "b", "/"]), max_size=8).map("".join), st.text("ab/", max_size=7))
def test_a_name_matches_by_the_rules(pattern: str, name: str) -> None:
    assert bool(glob_regex(pattern).fullmatch(name)) == plainly(pattern, name)

import pytest

from headrace.transforms.columns.wording import nearest


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [
        ("agee", ["age", "id"], "Did you mean 'age'?"),
        ("colour", ["age", "id"], ""),
        # What a flag makes of a name that nobody has quoted.
        ("a", ["x", "a,b"], "Did you mean 'a,b'? On the command line such a name is put in double quotes: \"a,b\"."),
        (
            "q",
            ["x", '"q"'],
            'Did you mean \'"q"\'? On the command line such a name is put in double quotes: "\\"q\\"".',
        ),
    ],
)
def test_names_like_it_and_how_a_flag_names_them(name: str, names: list[str], found: str) -> None:
    assert nearest(name, names) == found

"""The table of docs/models.md says what the tests try, and what is refused is refused so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.transforms.errors import ModelError
from headrace.transforms.models.load import load_model
from tests.support.refused_models import REFUSED, Refused
from tests.support.tried_models import ALONE, GROUPS, PAGE, ROOT, with_table


def test_the_table_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert with_table(page) == page, "run `make tried`"


def test_the_tests_that_it_names_are_there() -> None:
    for *_, path in GROUPS:
        assert (ROOT / path).exists(), path
    for *_, path, test in ALONE:
        assert re.search(rf"^ *def {test or 'test_'}", (ROOT / path).read_text("utf-8"), re.MULTILINE), (path, test)


@pytest.mark.parametrize("one", REFUSED, ids=lambda one: one.make.__name__)
def test_what_is_refused(tmp_path: Path, one: Refused) -> None:
    with pytest.raises(ModelError) as raised:
        load_model(str(one.make(tmp_path)))
    assert type(raised.value) is one.error
    assert one.says in str(raised.value)

"""Every flag and value that a template names, held against the command line and against one another."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.pipeline.flags.beam_options import PredictOptions, parse_flags
from headrace.pipeline.flags.template_parameters import as_flags, as_parameters

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "templates"
KNOWN = set(PredictOptions([]).get_all_options())  # Beam's too
DAG = ast.parse((TEMPLATES / "airflow" / "headrace_dag.py").read_text())
PAGES = [
    *TEMPLATES.glob("*/README.md"),
    *TEMPLATES.glob("local/*.service"),
    TEMPLATES / "airflow" / "headrace_dag.py",
    ROOT / "docs" / "scheduling.md",
]
OTHERS = ("gcloud", "airflow dags", "systemctl", "docker")  # commands with flags of their own


def names(page: Path) -> Iterator[str]:
    """Flags in the lines of a text that are not another program's."""
    for line in page.read_text("utf-8").replace("\\\n", "").splitlines():
        if not any(other in line for other in OTHERS):
            yield from re.findall(r"(?<![\w-])--([a-z]\w*)(?![\w-])", line)


def keys(name: str) -> set[str]:
    """What the DAG's dictionary of that name holds: a constant, or an argument."""
    found = [node.value for node in ast.walk(DAG) if isinstance(node, ast.keyword) and node.arg == name]
    found += [
        node.value
        for node in ast.walk(DAG)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name
    ]
    (dictionary,) = found
    assert isinstance(dictionary, ast.Dict)
    return {key.value for key in dictionary.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_text_names_no_flag_that_there_is_not(page: Path) -> None:
    assert set(names(page)) <= KNOWN


def test_bodies_name_no_flag_that_there_is_not() -> None:
    launch = json.loads((TEMPLATES / "scheduler" / "launch.json").read_text())
    classic = json.loads((TEMPLATES / "scheduler" / "classic.json").read_text())["launchParameters"]["parameters"]
    for given in (set(launch["launchParameter"]["parameters"]), set(classic), keys("FLAGS"), keys("pipeline_options")):
        assert given
        assert given <= KNOWN


@pytest.mark.parametrize("fills", [["text= "], ["text=a;b", "n= 1"], ["text=;", "n=x "]])
def test_values_come_through_a_template_as_they_are(fills: list[str]) -> None:
    options = parse_flags([f"--fill={fill}" for fill in fills])
    given = as_parameters(options)
    assert parse_flags(as_flags(given)).fill == fills


def test_the_search_finds_flags() -> None:
    assert {"incremental", "input", "output"} <= set(names(ROOT / "docs" / "scheduling.md"))
    assert {"model", "input", "output"} <= set(names(TEMPLATES / "airflow" / "headrace_dag.py"))
    assert {"model", "input", "output"} == keys("FLAGS")


def test_airflow_and_the_schedule_start_the_same_template_with_the_same_model() -> None:
    lines = (TEMPLATES / "scheduler" / "values.env").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines)
    dag = (TEMPLATES / "airflow" / "headrace_dag.py").read_text()
    for name in ("PROJECT", "REGION", "TEMPLATE", "WORKER_ACCOUNT", "TEMP"):
        assert f'{name} = "{values[name]}"\n' in dag
    assert f'"model": "{values["MODEL"]}"' in dag

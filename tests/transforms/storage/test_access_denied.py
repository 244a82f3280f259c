"""A 403 of Google Cloud Storage is told once, with principal, permission, object and cure; nothing is tried again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from headrace.pipeline.cli import main
from headrace.transforms.errors import AccessDenied
from headrace.transforms.storage import ObjectRef, Store, open_store
from tests.support.front import Front, Gate, served
from tests.support.jobs import put_inputs, put_model

ROBOT = "worker@project.iam.gserviceaccount.com"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def front(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    for front in served(Front(emulator)):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        yield front


def deny(front: Front, permission: str, asked: Callable[[Gate], bool], *, as_text: bool = False) -> None:
    """What the service answers (JSON API, 403): https://cloud.google.com/storage/docs/json_api/v1/status-codes"""
    message = (
        f"{ROBOT} does not have {permission} access to the Google Cloud Storage object. "
        f"Permission '{permission}' denied on resource (or it may not exist)."
    )
    error = {
        "code": 403,
        "message": message,
        "errors": [{"message": message, "domain": "global", "reason": "forbidden"}],
    }
    body = message if as_text else json.dumps({"error": error}, indent=2)

    def fault(gate: Gate) -> bool:
        if not asked(gate):
            return False
        gate.answer(403, {"Content-Type": "text/html" if as_text else "application/json"}, body.encode())
        return True

    front.faults.append(fault)


PINNED = ObjectRef("gs://private/folder/x", 3, "7")
VERBS: dict[str, tuple[str, str, Callable[[Store], object]]] = {
    "stat": ("storage.objects.get", "read gs://private/folder/x", lambda store: store.stat(PINNED.uri)),
    "read": ("storage.objects.get", "read gs://private/folder/x", lambda store: store.read(PINNED)),
    "list": (
        "storage.objects.list",
        "list gs://private/folder/",
        lambda store: list(store.list("gs://private/folder/")),
    ),
    "small": ("storage.objects.create", "write gs://private/folder/x", lambda store: write(store, 10)),
    "large": ("storage.objects.create", "write gs://private/folder/x", lambda store: write(store, 9 << 20)),
    "delete": ("storage.objects.delete", "delete gs://private/folder/x", lambda store: store.delete(PINNED)),
}


def write(store: Store, size: int) -> None:
    with store.create(PINNED.uri) as writer:
        writer.write(bytes(size))
        writer.commit()


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_a_403_names_principal_permission_object_and_role(front: Front, verb: str, as_text: bool) -> None:
    permission, what, act = VERBS[verb]
    deny(front, permission, lambda gate: verb != "delete" or gate.command == "DELETE", as_text=as_text)
    if verb == "delete":
        # The emulator is asked for the generation first.
        front.faults.insert(0, standing)
    with pytest.raises(AccessDenied) as caught:
        act(open_store("gs://private/"))
    told = str(caught.value)
    assert told.startswith(f"Cannot {what}: {ROBOT} lacks the permission {permission}.")
    assert re.search(r"Grant it on gs://private, as the role roles/storage\.object(Viewer|Creator|User) does", told)
    refused = [request for request in front.seen if not (verb == "delete" and request[0] == "GET")]
    assert len(refused) == 1


def standing(gate: Gate) -> bool:
    if gate.command != "GET":
        return False
    about = {"name": "folder/x", "bucket": "private", "size": "3", "generation": "7", "crc32c": "AAAAAA=="}
    gate.answer(200, {"Content-Type": "application/json"}, json.dumps(about).encode())
    return True


def test_a_403_without_words_says_which_permission_it_takes(front: Front) -> None:
    def fault(gate: Gate) -> bool:
        gate.answer(403, {}, b"")
        return True

    front.faults.append(fault)
    with pytest.raises(AccessDenied, match=r"this identity lacks the permission storage\.objects\.get\. .*HTTP 403"):
        open_store("gs://private/").read(PINNED)


def test_what_only_a_worker_is_denied_is_told_once(capfd: Capture, front: Front, bucket: str) -> None:
    """The launcher may list the inputs and read the first one's footer; rows are read by workers."""
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [20] * 3)
    deny(front, "storage.objects.get", lambda gate: "alt=media" in gate.path and "part-00002" in gate.path)
    assert main([f"--model={bucket}/model", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]) == 1
    told = capfd.readouterr().err
    assert told.count("lacks the permission") == 1
    assert f"The job failed: Cannot read {bucket}/in/part-00002.parquet: {ROBOT} lacks" in told
    assert "Traceback" not in told


def test_what_the_launcher_is_denied_ends_it_before_anything_is_written(
    capfd: Capture, front: Front, bucket: str
) -> None:
    put_model("saved_model", f"{bucket}/model")
    put_inputs(f"{bucket}/in", [20])
    deny(front, "storage.objects.create", lambda gate: gate.command == "POST")
    argv = [f"--model={bucket}/model", f"--input={bucket}/in/*.parquet", f"--output={bucket}/out"]
    assert main(argv) == 2
    told = capfd.readouterr().err
    assert f"Cannot write {bucket}/out/_headrace/claims/00000001.claim: {ROBOT} lacks the permission" in told
    assert "storage.objects.create" in told
    assert "roles/storage.objectCreator" in told

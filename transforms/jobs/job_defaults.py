"""What help texts say of a job before anything heavy is imported: its defaults, and where it writes beside predictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

REPORT = "_headrace/report.html"
DEAD_LETTERS_FOLDER = "_dead_letters"


@dataclass(frozen=True, slots=True)
class Loading:
    """How a worker loads the model; no part of what the job is. See `headrace.load_model`.

    `device` is one of `headrace.transforms.predicting.devices.DEVICES`: "auto" is every GPU that TensorFlow sees, else the CPU.
    """

    connections: int = 32
    in_flight_bytes: int = 256 << 20
    model_sharing: str = "machine"
    device: str = "auto"

    @property
    def how(self) -> dict[str, Any]:
        """All but the device, as `load_model` takes it."""
        return {name: value for name, value in asdict(self).items() if name != "device"}

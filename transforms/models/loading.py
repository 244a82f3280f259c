"""How a model gets from storage into memory: what a job's workers and callers of `load_model` decide alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InvalidRequest

SHARING = ("machine", "process")


@dataclass(frozen=True, slots=True)
class Loading:
    """How a model is loaded, and where it computes. None of it changes what the model is.

    `connections` read from storage at once, and at most `in_flight_bytes` of what they read wait to be checked and handed
    over. With `model_sharing="machine"`, the processes of this machine and user that load the same model so hold one copy of
    its weights, fetched once; where that is impossible, the log says why. With "process", each process has its own copy.

    `device` is "cpu", "gpu", or TensorFlow's name of one device ("GPU:1"). "auto" is every GPU that TensorFlow sees, else the
    CPU. `load_model` returns one model on one device: there "gpu" is the first GPU, and "auto" leaves the choice to TensorFlow.

    Raises `InvalidRequest` for another `model_sharing`; `load_model`, for a device that does not exist.
    """

    connections: int = 32
    in_flight_bytes: int = 256 << 20
    model_sharing: str = "machine"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.model_sharing not in SHARING:
            raise InvalidRequest(
                "model_sharing does not take this value",
                expected=" or ".join(map(repr, SHARING)),
                found=repr(self.model_sharing),
                cure="Leave model_sharing out",
            )

    def on(self, device: str | None) -> Loading:
        """The same, on the device of that name; None leaves the choice to TensorFlow."""
        return replace(self, device=device or "auto")

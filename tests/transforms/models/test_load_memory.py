"""What loading costs in memory beyond an idle process, measured by the kernel in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import model_zoo, orbax_checkpoints, zoo_v1
from tests.support.warm import python

_PEAK = """
import sys
from pathlib import Path
from headrace.transforms.models.load import load_model
from headrace.transforms.models.loading import Loading

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10

load_model(sys.argv[1])
before = status("VmRSS:")
model = load_model(sys.argv[2], loading=Loading(in_flight_bytes=int(sys.argv[3])))
print(model.nbytes, status("VmHWM:") - before, status("VmRSS:") - before)
"""


def measured(small: Path, large: Path, in_flight: int = 256 << 20) -> tuple[int, int]:
    """Bytes of weights, and of the peak above what the process held before."""
    weights, peak, kept = map(int, python(_PEAK, str(small), str(large), str(in_flight)).split())
    print(f"weights {weights >> 20} MiB, peak +{peak >> 20} MiB, kept +{kept >> 20} MiB")
    return weights, peak


def test_peak_memory_is_the_weights_once(tmp_path: Path) -> None:
    """Keras' export holds 400 MiB here, of which the signature uses 200; loading it natively peaks at over 400."""
    model_zoo.keras_export(tmp_path / "small")
    model_zoo.wide(tmp_path / "wide", 200)
    weights, peak = measured(tmp_path / "small", tmp_path / "wide")
    assert weights == pytest.approx(200 << 20, rel=0.02)
    assert peak <= 1.15 * weights + (64 << 20)


@pytest.mark.parametrize("use_resource", [True, False])
def test_peak_memory_of_tensorflow_1(tmp_path: Path, use_resource: bool) -> None:
    zoo_v1._matrices(tmp_path / "small", use_resource)
    zoo_v1.wide(tmp_path / "wide", 160, use_resource)
    weights, peak = measured(tmp_path / "small", tmp_path / "wide")
    assert weights == 160 << 20
    assert peak <= (1.15 if use_resource else 1.5) * weights + (64 << 20)


def test_peak_memory_of_a_keras_hub_preset(tmp_path: Path) -> None:
    """Two files of weights: of the backbone, 104 MiB here, and of the task. KerasHub's own loader peaks at 1.7 times them."""
    pytest.importorskip("keras_hub")
    from tests.support import hub_presets

    hub_presets.wide(words=34_000, dimensions=800).save_to_preset(str(tmp_path / "wide"))
    weights, peak = measured(hub_presets.preset(hub_presets.word_pieces), tmp_path / "wide")
    assert weights > 104 << 20
    assert peak <= 1.05 * weights + (64 << 20)


def test_peak_memory_of_an_orbax_checkpoint(tmp_path: Path) -> None:
    """Packed arrays, of which a few pieces are in memory beside what they unpack to, and not the optimizer's."""
    import keras

    def made(units: int) -> Any:
        return keras.Sequential([keras.Input((units,)), keras.layers.Dense(units), keras.layers.Dense(units)])

    orbax_checkpoints.save(made(8), tmp_path / "small")
    orbax_checkpoints.save(made(2800), tmp_path / "wide")
    weights, peak = measured(tmp_path / "small", tmp_path / "wide", 16 << 20)
    assert weights > 59 << 20
    assert peak <= 1.05 * weights + (16 << 20) + (16 << 20)

"""Memory is the claim of streaming, so it is measured: anonymous bytes of a fresh process, sampled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.models.architectures import tiny_architecture

_MIB = 2**20

_CHILD = """
import sys, threading, time
from pathlib import Path
import torch
from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def sample():
    while True:
        peaks[0] = max(peaks[0], anonymous())
        time.sleep(0.002)

folder, weight_bytes = Path(sys.argv[1]), int(sys.argv[2])
peaks = [0]
torch.set_num_threads(1)
StreamedTeacher(Path(sys.argv[3]), dtype=torch.float32, device=torch.device("cpu")).close()  # warms up
start = anonymous()
threading.Thread(target=sample, daemon=True).start()
memory = StreamingMemory(weight_bytes=weight_bytes)
teacher = StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"), memory=memory)
ids = torch.randint(0, 300, (2, 16))
for _ in range(2):
    hidden_states = teacher.last_hidden_states([ids] * 4)
    for states in hidden_states:
        teacher.logits(states.flatten(0, 1)[:8])
print(peaks[0] - start)
"""


def peak_bytes(folder: Path, weight_bytes: int) -> int:
    small = tiny_architecture("llama")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), str(weight_bytes), str(small)],
        capture_output=True,
        text=True,
        check=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    return int(done.stdout)


def wide_llama(num_layers: int) -> Path:
    """Layers of 8.0 MiB, an embedding and a head of 20 MiB each."""
    return tiny_architecture(
        "llama", hidden_size=512, intermediate_size=682, num_hidden_layers=num_layers, vocab_size=10_240
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_does_not_grow_with_the_number_of_layers() -> None:
    two_layers = 2 * 8 * _MIB
    four, sixteen = (peak_bytes(wide_llama(layers), two_layers) for layers in (4, 16))
    # Twelve more layers are 96 MiB. Only the modules themselves may grow, a few kilobytes a layer.
    assert sixteen - four < 4 * _MIB, f"4 layers: {four / _MIB:.1f} MiB, 16 layers: {sixteen / _MIB:.1f} MiB"
    # Two layers, one slice of the head (8 MiB), activations; not embedding and head (40 MiB), not all layers (128 MiB).
    assert sixteen < two_layers + 24 * _MIB, f"16 layers: {sixteen / _MIB:.1f} MiB"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_less_memory_for_weights_is_less_memory_in_use() -> None:
    one_layer = peak_bytes(wide_llama(4), 8 * _MIB)
    whole_head = peak_bytes(wide_llama(4), 64 * _MIB)
    assert one_layer < whole_head - 2 * _MIB, f"{one_layer / _MIB:.1f} MiB against {whole_head / _MIB:.1f} MiB"

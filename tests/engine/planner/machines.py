"""Machines to plan for: a laptop with a small GPU, a computer without one, with rates as a probe would find them."""

from pathlib import Path

from engine.machine.hardware import Gpu, Hardware
from engine.planner.measure import MachineRates
from engine.planner.shape import ModelShape

GIB = 2**30
MIB = 2**20


def computer(available_bytes: int = 16 * GIB, disk_bytes: int = 100 * GIB, gpus: tuple[Gpu, ...] = ()) -> Hardware:
    """A machine with four cores."""
    return Hardware(
        gpus=gpus,
        ram_bytes=2 * available_bytes,
        available_bytes=available_bytes,
        cgroup_limit_bytes=None,
        cores=4,
        cpu_name="Some CPU",
        cpu_features=("AVX2",),
        disk_free_bytes=disk_bytes,
        disk_path=Path(),
        gpu_note="" if gpus else "no NVIDIA driver is loaded",
    )


LAPTOP_GPU = Gpu(0, "RTX 3050", 4 * GIB, 3 * GIB, "550.54", "8.6")
BIG_GPU = Gpu(1, "RTX 3090", 24 * GIB, 20 * GIB, "550.54", "8.6")

RATES = MachineRates(
    gemm_flops={"fp32_small": 5e10, "fp32_large": 1e11, "bf16_small": 2e10, "bf16_large": 5e10},
    memory_bytes_per_second=1e10,
    seconds_per_operation=2e-6,
    disk_read_bytes_per_second=1e9,
    disk_write_bytes_per_second=5e8,
    measured=True,
)


def pythia(hidden: int, layers: int, heads: int, *, vocab: int = 50_304) -> ModelShape:
    """A model of Pythia's kind: untied, four times as wide inside as outside."""
    return ModelShape(
        name=f"pythia-{hidden}x{layers}",
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        layer_parameters=(12 * hidden**2 + 13 * hidden,) * layers,
        embedding=vocab * hidden,
        head=vocab * hidden,
        other=2 * hidden,
        stored_bytes=4,
        max_positions=2048,
        model_type="gpt_neox",
    )


PYTHIA_70M = pythia(512, 6, 8)
PYTHIA_410M = pythia(1024, 24, 16)
PYTHIA_1B = pythia(2048, 24, 16)

"""Does it keep its promises on a GPU? For a machine that has one; says so and ends with 0 where there is none.

    python -m tests.benchmarks.gpu [--folder FOLDER] [--json gpu.json]
    python -m tests.benchmarks.gpu --device cpu --no-memory     # the script itself, without a GPU

Three questions. *Fields*: what the driver says of each GPU, as the planner reads it. *Parity*: the demo's teacher
scores on the GPU, whole and streamed, in fp32, bf16 and nf4; then the same rows are scored again on the CPU, and the
records are compared. *Memory*: the table of tests/benchmarks/low_memory.py with budgets of 2 and 4 GB, which the
allocator is held to, beside the usual loop and TRL on the same GPU; its models are random, in Pythia's shapes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine import hardware
from engine.cache.store import CacheStore
from engine.models.demo import DEMO_TEACHER
from engine.phases.rescore import rescore
from engine.run import Run, versions
from tests.benchmarks import low_memory

ROWS_COMPARED = 16


@dataclass(frozen=True)
class Way:
    """One way of scoring, and how far its records may be from the CPU's.

    Attributes:
        least_shared: mean mass that both records of a position have on the same ids.
        most_apart: mean difference of the label's log-probability, in nats.
    """

    name: str
    settings: dict[str, Any]
    least_shared: float
    most_apart: float


# In fp32 only the order of sums differs; half precision rounds each product to 1 part in 256, on both sides.
WAYS = (
    Way("whole, fp32", {"precision": "fp32", "layer_by_layer": False}, 0.99, 1e-3),
    Way("streamed, fp32", {"precision": "fp32", "layer_by_layer": True}, 0.99, 1e-3),
    Way("streamed, moved out", {"precision": "fp32", "layer_by_layer": True, "cpu_offload": True}, 0.99, 1e-3),
    Way("streamed, bf16", {"precision": "bf16", "layer_by_layer": True}, 0.9, 5e-2),
    Way("whole, nf4", {"precision": "fp32", "layer_by_layer": False, "quantization": "nf4"}, 0.99, 1e-2),
    Way("streamed, nf4", {"precision": "fp32", "layer_by_layer": True, "quantization": "nf4"}, 0.99, 1e-2),
)


def main(words: list[str] | None = None) -> int:
    """Run it; 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=low_memory._usual_folder(), help="for models (about 9 GB)")
    parser.add_argument("--json", type=Path, help="write the results here; the memory table goes beside it")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--no-memory", action="store_true", help="leave out the table")
    arguments = parser.parse_args(words)
    gpus, why_none = hardware.find_gpus()
    if arguments.device != "cpu" and not gpus:
        print(f"There is no GPU here ({why_none}): nothing was measured.")
        return 0
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for gpu in gpus:
        print(f"{gpu.name}: {gpu.free_bytes:,} of {gpu.total_bytes:,} bytes free, driver {gpu.driver}")
    parity = _parity(arguments.folder, arguments.device)
    kept = all(row["kept"] for row in parity)
    if arguments.json:
        results = {"gpus": [asdict(gpu) for gpu in gpus], "device": arguments.device, "parity": parity}
        results |= {"versions": versions(), "date": time.strftime("%Y-%m-%d")}
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if not arguments.no_memory:
        table = ["--folder", str(arguments.folder), "--device", arguments.device, "--budget", "2GB", "--budget", "4GB"]
        if arguments.json:
            table += ["--json", str(arguments.json.with_name(f"{arguments.json.stem}-memory.json"))]
        kept &= low_memory.main(table) == 0
    return int(not kept)


def _parity(folder: Path, device: str) -> list[dict[str, Any]]:
    rows = []
    for way in WAYS:
        with tempfile.TemporaryDirectory(prefix="tinydistill-gpu-", dir=folder) as place:
            row = _score(way, Path(place) / "run", device)
        rows.append(row)
        print(
            f"{way.name:20} shared {row['shared']:.4f} (at least {way.least_shared}), labels {row['apart']:.1e} apart "
            f"(at most {way.most_apart}), {row['device_bytes'] or 0:,} bytes on the GPU, predicted "
            f"{row['predicted_bytes']:,}{'' if row['kept'] else '   NOT KEPT'}",
            flush=True,
        )
    return rows


def _score(way: Way, run: Path, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "engine.cli.distill", "--plain", "--until", "teacher"]
    settings: dict[str, Any] = {"teacher": DEMO_TEACHER, "student": DEMO_TEACHER, "data": "python-docs"}
    settings |= {"output_dir": run, "device": device, "sequence_length": 128, "samples": 64, "teacher_batch": 4}
    for name, value in (settings | way.settings).items():
        command.append(f"--no_{name}" if value is False else f"--{name}")
        if not isinstance(value, bool):
            command.append(str(value))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    opened = Run.open(run)
    with CacheStore.look(opened.cache_path) as store:
        found = rescore(store, ROWS_COMPARED, None)  # on the CPU, whole
    return {
        "way": way.name,
        "settings": way.settings,
        "rows": found.rows,
        "tokens": found.tokens,
        "shared": found.overlap,
        "apart": found.label_difference,
        "device_bytes": (opened.result("teacher") or {}).get("device_peak_bytes"),
        "predicted_bytes": opened.info["predicted"]["teacher"]["peak_bytes"],
        "kept": found.overlap >= way.least_shared and found.label_difference <= way.most_apart,
    }


if __name__ == "__main__":
    sys.exit(main())

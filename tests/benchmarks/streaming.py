"""Does a streamed teacher score as fast as the same teacher in memory, and in how much less memory?

    python -m tests.benchmarks.streaming --model 410m --tokens 2048 --out streaming.json

Random weights in the shapes of Pythia (made once, next to --out). Each side runs in a process of its own, in turn,
several times: the two sides of a pair run one right after the other, so that a machine that is busy is busy for both.
A run scores one wave: hidden states and logits of every token, no records. Written down are tokens a second, processor
seconds (on a busy machine the steadier figure: reading ahead counts there as if it took time), the ratios of each pair,
and the peak of anonymous memory (and of GPU memory) of each side, sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.pythia import VOCAB_ROWS, make_pythia

SEQUENCE_LENGTH = 128
SIDES = ("resident", "streamed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="410m", help="70m, 160m, 410m or 1.4b")
    parser.add_argument("--folder", type=Path, help="where the model is, or shall be made")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in a wave")
    parser.add_argument("--micro-batch", type=int, default=4, help="rows of 128 tokens in a micro-batch")
    parser.add_argument("--chunk", type=int, default=256, help="tokens whose logits exist at a time")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quantization", default="none", choices=["none", "int8", "nf4"])
    parser.add_argument("--weight-bytes", type=int, help="most memory for the streamed teacher's weights")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_measure(arguments)))
        return

    folder = arguments.folder or Path(f"pythia-{arguments.model}")
    make_pythia(arguments.model, folder)
    pairs = [{side: _run_side(side, folder) for side in SIDES} for _ in range(arguments.pairs)]
    ratios = [pair["streamed"]["tokens_per_second"] / pair["resident"]["tokens_per_second"] for pair in pairs]
    processor_ratios = [pair["resident"]["processor_seconds"] / pair["streamed"]["processor_seconds"] for pair in pairs]
    equal = all(pair["streamed"]["checksum"] == pair["resident"]["checksum"] for pair in pairs)
    result: dict[str, Any] = {
        "question": __doc__.splitlines()[0],
        "settings": {
            key: str(value)
            for key, value in vars(arguments).items()
            if value is not None and key not in ("folder", "out")
        },
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": pairs[0]["streamed"]["versions"],
        "date": time.strftime("%Y-%m-%d"),
        "pairs": pairs,
        "speed_ratio": _spread(ratios),
        "speed_ratio_by_processor_time": _spread(processor_ratios),
        "same_logits": equal,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2))
    for side in SIDES:
        rate = statistics.median(pair[side]["tokens_per_second"] for pair in pairs)
        peak = max(pair[side]["peak_anonymous_bytes"] for pair in pairs)
        device = max(pair[side]["peak_device_bytes"] for pair in pairs)
        print(f"{side:9} {rate:8.1f} tokens/s  {peak / 1e6:7.0f} MB anonymous  {device / 1e6:7.0f} MB on the GPU")
    for label, key in (("speed", "speed_ratio"), ("processor time", "speed_ratio_by_processor_time")):
        median, lowest, highest = (result[key][name] for name in ("median", "lowest", "highest"))
        print(f"streamed/resident by {label}: {median:.3f} ({lowest:.3f} to {highest:.3f})")
    print(f"same logits: {equal}")


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _run_side(side: str, folder: Path) -> dict[str, Any]:
    module = "tests.benchmarks.streaming"
    command = [sys.executable, "-m", module, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    from engine.models.resident import ResidentTeacher
    from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory

    torch.set_num_threads(arguments.threads)
    peak = _Peak()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    common: dict[str, Any] = {"dtype": dtype, "device": device, "quantization": arguments.quantization}
    teacher: Any
    if arguments.side == "resident":
        teacher = ResidentTeacher(arguments.folder, **common)
        if device.type == "cpu":  # or its weights would be pages of the file: anonymous is what they would be elsewhere
            teacher.model._apply(lambda tensor: tensor.clone() if not tensor.is_meta else tensor)
    else:
        memory = StreamingMemory(weight_bytes=arguments.weight_bytes)
        teacher = StreamedTeacher(arguments.folder, memory=memory, **common)
    generator = torch.Generator().manual_seed(0)
    rows = arguments.tokens // SEQUENCE_LENGTH
    ids = torch.randint(0, VOCAB_ROWS, (rows, SEQUENCE_LENGTH), generator=generator).split(arguments.micro_batch)
    teacher.last_hidden_states([ids[0]])  # starts threads, fills the page cache
    began, worked = time.perf_counter(), time.process_time()
    checksum = 0.0
    for hidden_states in teacher.last_hidden_states(list(ids)):
        for chunk in hidden_states.flatten(0, 1).split(arguments.chunk):
            checksum += float(teacher.logits(chunk)[:, ::101].double().abs().sum())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    return {
        "tokens_per_second": rows * SEQUENCE_LENGTH / seconds,
        "seconds": seconds,
        "processor_seconds": time.process_time() - worked,
        "peak_anonymous_bytes": peak.highest,
        "peak_device_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0,
        "checksum": checksum,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


class _Peak:
    """The highest anonymous memory of this process so far, looked at by a thread."""

    def __init__(self) -> None:
        self.highest = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            with open("/proc/self/status") as status:
                now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
            self.highest = max(self.highest, now)
            time.sleep(0.005)


if __name__ == "__main__":
    main()

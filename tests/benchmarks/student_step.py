r"""Time and memory of a step with the record loss, against a plain cross-entropy step of the same model.

    python -m tests.benchmarks.student_step --model 70m --out student_step.json
    python -m tests.benchmarks.student_step --model 160m --rows 16 --length 512 --device cuda:0 --precision bf16 \
        --sides plain record lean --profile 12

Random weights in the shapes of Pythia. *plain* is the model's own forward with labels (full logits), its backward, and
torch's fused AdamW, in the environment that this script is started in; the other sides have the environment that a run
gives its phases. *record* is the usual step; *lean* has 8-bit moments and no whole gradient; *mapped* is lean with
weights and moments in files. Every side learns from the same rows. Each runs in a process of its own, one right after
the other, several times, so that a machine that is busy is busy for all. Written down are tokens a second, processor
seconds (on a busy machine the steadier figure), and the peak of anonymous memory, sampled every 5 ms (of *mapped* that
is the making of its random weights in memory; a real student's are read from a file), on a GPU that of torch's
allocator there. In half precision *plain* uses autocast, as torch's documentation has it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.machine.hardware import usable_cores
from engine.run.phase_environment import environment_for
from tests.benchmarks.pythia import SHAPES, VOCAB_ROWS
from tests.jobs import train_job

SIDES = ("plain", "record", "lean", "mapped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="70m", choices=sorted(SHAPES))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="measured, after one to warm up")
    parser.add_argument("--record-size", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="plain and others")
    parser.add_argument(
        "--profile", type=int, default=0, help="print so many operations of each side that take longest"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_measure(arguments)))
        return

    rounds = [{side: _run_side(side) for side in arguments.sides} for _ in range(arguments.rounds)]
    result: dict[str, Any] = {
        "question": (__doc__ or "").splitlines()[0],
        "settings": {
            key: str(value)
            for key, value in vars(arguments).items()
            if value is not None and key not in ("folder", "out")
        },
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": rounds[0]["plain"]["versions"],
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "speed_ratio": {},
        "speed_ratio_by_processor_time": {},
    }
    for side in arguments.sides:
        plain, ours = ([one[name] for one in rounds] for name in ("plain", side))
        pairs = list(zip(plain, ours, strict=True))
        result["speed_ratio"][side] = _spread([b["tokens_per_second"] / a["tokens_per_second"] for a, b in pairs])
        result["speed_ratio_by_processor_time"][side] = _spread(
            [a["processor_seconds"] / b["processor_seconds"] for a, b in pairs]
        )
        rate = statistics.median(one["tokens_per_second"] for one in ours)
        peak = max(one["device_bytes"] or one["peak_anonymous_bytes"] for one in ours)
        ratio, processor = (result[key][side]["median"] for key in ("speed_ratio", "speed_ratio_by_processor_time"))
        print(
            f"{side:7} {rate:7.1f} tokens/s  {ratio:.2f} x plain ({processor:.2f} by processor time)  "
            f"{peak / 1e6:6.0f} MB {'anonymous' if arguments.device == 'cpu' else 'on the device'}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _run_side(side: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.student_step", *sys.argv[1:], "--side", side]
    # A run keeps freed memory where there is room, and the lean ways are for where there is none.
    ours = environment_for(train_job(keep_memory=side == "record", threads=usable_cores()))
    ours |= {"PYTHONPATH": str(Path(__file__).parents[2])}  # a phase does not look for modules where it is started
    environment = None if side == "plain" else ours
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    print("\n".join(done.stdout.splitlines()[:-1]))
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    peak = _Peak()
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    hidden_size, num_layers, num_heads = SHAPES[arguments.model]
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB_ROWS,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        rotary_pct=0.25,
        tie_word_embeddings=False,
    )
    device = torch.device(arguments.device)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train().to(device)
    with tempfile.TemporaryDirectory() as scratch:
        step = (
            _plain_step(model, arguments)
            if arguments.side == "plain"
            else _record_step(model, arguments, Path(scratch))
        )
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, VOCAB_ROWS, (arguments.rows, arguments.length), generator=generator).to(device)
        step(tokens)
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(arguments.steps):
            loss = step(tokens)
        seconds, processor_seconds = time.perf_counter() - began, time.process_time() - worked
        if arguments.profile:
            _print_profile(step, tokens, arguments.profile)
    return {
        "tokens_per_second": arguments.steps * arguments.rows * (arguments.length - 1) / seconds,
        "processor_seconds": processor_seconds,
        "peak_anonymous_bytes": peak.highest,
        "device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "loss": loss,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _print_profile(step: Callable[[Any], float], tokens: Any, rows: int) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(3):
            step(tokens)
    for order in ("self_cpu_time_total", "self_device_time_total")[: len(activities)]:
        print(profiler.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=60))


def _plain_step(model: Any, arguments: argparse.Namespace) -> Callable[[Any], float]:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(tokens: Any) -> float:
        is_half = arguments.precision == "bf16"
        with torch.autocast(torch.device(arguments.device).type, torch.bfloat16, enabled=is_half):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _record_step(model: Any, arguments: argparse.Namespace, scratch: Path) -> Callable[[Any], float]:
    import torch

    from engine.machine.torch_device import PRECISIONS, kind_of
    from engine.models.load_in_place import move_weights
    from engine.planner.sizes import head_chunk_tokens
    from engine.student.batches import MicroBatch, StepPart
    from engine.student.lean_step import RunningNorms, lean_step
    from engine.student.learner import Learner
    from engine.student.loss import Objective, RecordTensors
    from engine.student.mapped import weights_in_files
    from engine.student.optimizer import AdamW
    from engine.student.step import StepSettings, train_step

    folder = scratch if arguments.side == "mapped" else None
    if folder is not None:
        move_weights(model, weights_in_files(folder))
    device, kind = torch.device(arguments.device), kind_of(torch.device(arguments.device))
    learner = Learner(model, dtype=PRECISIONS[arguments.precision], gradient_checkpointing=False)
    bits = 32 if arguments.side == "record" else 8
    optimizer = AdamW(model.named_parameters(), weight_decay=0.01, bits=bits, scratch=folder)  # type: ignore[arg-type]
    objective = Objective(VOCAB_ROWS, "unbiased", 0.9, 1.0)
    count, k = arguments.rows * (arguments.length - 1), arguments.record_size
    records = RecordTensors(
        ids=torch.randint(0, VOCAB_ROWS, (count, k)).to(device),
        weights=torch.full((count, k), 1 / k, device=device),
        num_head=torch.zeros(count, dtype=torch.int64, device=device),
        tail_mass=torch.ones(count, device=device),
        entropy=torch.full((count,), 2.0, device=device),
    )
    places = torch.arange(arguments.rows * arguments.length).view(arguments.rows, -1)[:, :-1].flatten().to(device)
    norms: dict[str, float] = {}

    def step(tokens: Any) -> float:
        batch = MicroBatch(tokens, places, tokens.flatten()[places + 1], records)
        settings = StepSettings(
            objective, learning_rate=1e-4, clip_norm=1.0, chunk_tokens=head_chunk_tokens(VOCAB_ROWS, device=kind)
        )
        parts = [StepPart(batch, count, True)]
        if bits == 8:
            return lean_step(learner, parts, optimizer, settings, RunningNorms(1.0, norms)).loss
        return train_step(learner, parts, optimizer, settings).loss

    return step


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

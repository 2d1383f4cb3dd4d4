"""How much of what full-logit distillation gives does a student get from records of k ids?

    python -m tests.benchmarks.quality.targets --teacher demo --work FOLDER --out quality-demo.json

Equal tokens, equal steps, equal student, cut from the teacher: for each seed all arms read the same rows in the same
order. The figure of merit is the share of the way from *labels only* to *full distribution* that an arm goes,
in hold-out loss and in KL to the teacher; it is taken seed by seed. The measurement is exact: the teacher's whole
distribution at every hold-out position.

Each training has one thread, ``--jobs`` of them run at a time. Finished ones stay in ``--work``, so the
command can be stopped and given again. ``--teacher smollm2`` wants SmolLM2-135M-Instruct as a folder in $SMOLLM2.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from engine.cache.id_layout import flag_bits, uniform_widths
from tests.benchmarks.quality.arms import ARMS, MAIN, SETTINGS, Arm, Setting
from tests.benchmarks.quality.plot import write_plot
from tests.benchmarks.quality.summary import summarise, table

_LARGE_VOCABULARY = 151_936


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=sorted(SETTINGS), default="demo")
    parser.add_argument("--work", type=Path, required=True, help="a folder for rows, caches and what is finished")
    parser.add_argument("--out", type=Path, help="the results as JSON; a plot is written beside it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, help="instead of the setting's")
    parser.add_argument("--arms", help="only those whose name contains this")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.teacher]
    seeds = range(arguments.seeds or setting.seeds)
    arms = [arm for arm in ARMS[setting.name] if (arguments.arms or "") in arm.name]
    _run_all(setting, arms, seeds, arguments)
    found = _finished(arguments.work)
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "setting": {**vars(setting), "teacher": setting.teacher.name},
        "versions": found["versions"],
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "date": time.strftime("%Y-%m-%d"),
        "arms": summarise(list(ARMS[setting.name]), found["trainings"], found["caches"]),
    }
    print(table(result["arms"]))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        write_plot(result["arms"], arguments.out.with_suffix(".svg"), f"{setting.name}: shares closed by bytes a token")


def _run_all(setting: Setting, arms: list[Arm], seeds: range, arguments: argparse.Namespace) -> None:
    """Run the unfinished ones in processes of one thread each; the main arms first, so that any end is fair."""
    done = _finished(arguments.work)["trainings"]
    jobs = [
        (arm.name, seed)
        for is_main in (True, False)
        for seed in seeds
        for arm in arms
        if (arm in MAIN) is is_main and f"{arm.name}/{seed}" not in done
    ]
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    share = (setting, arguments.work)
    with ProcessPoolExecutor(1, context, _begin, share) as alone:  # it makes rows and hidden states for all
        alone.submit(int).result()
    with ProcessPoolExecutor(arguments.jobs, context, _begin, share) as pool:
        for _ in pool.map(_do, jobs):
            pass


_SHARED: dict[str, Any] = {}


def _begin(setting: Setting, work: Path) -> None:
    """In a worker: one thread, and the material once for all of its jobs."""
    import torch

    from tests.benchmarks.quality.material import Material

    torch.set_num_threads(1)
    _SHARED.update(setting=setting, work=work, material=Material(setting, work))


def _do(job: tuple[str, int]) -> None:
    """In a worker: make the caches that an arm reads, train it with a seed, and enter what came of it."""
    import torch
    import transformers

    from tests.benchmarks.quality.train import draw_seed, num_draws, train_arm

    name, seed = job
    setting, material = _SHARED["setting"], _SHARED["material"]
    (arm,) = (arm for arm in ARMS[setting.name] if arm.name == name)
    for draw in range(num_draws(arm, setting)):
        place = (arm.kind, arm.size, draw_seed(seed, draw))
        found: dict[str, Any] = {"cache": "-".join(map(str, place))} | material.make_store(*place)
        _enter(found | {"bytes_at_152k": _bytes_of_record(found, arm.size, _LARGE_VOCABULARY)})
    figures: dict[str, Any] = {"training": f"{name}/{seed}", **train_arm(setting, material, arm, seed)}
    _enter(figures | {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}})


def _enter(found: dict[str, Any]) -> None:
    with (_SHARED["work"] / "finished.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")


def _bytes_of_record(found: dict[str, float], size: int, vocab_size: int) -> float:
    """Most bytes of a record of so many ids and heads with another vocabulary, if ids are uniform."""
    widths = uniform_widths(size, vocab_size)
    return (flag_bits(size, len(widths)) + size * widths[0]) / 8 + found["mean_heads"] + 3


def _finished(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"caches": {}, "trainings": {}, "versions": {}}
    path = work / "finished.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        entry = json.loads(line)
        if "cache" in entry:
            found["caches"][entry.pop("cache")] = entry
        else:
            found["versions"] = entry.pop("versions")
            found["trainings"][entry.pop("training")] = entry
    return found


if __name__ == "__main__":
    main()

"""How good a student does a teacher give in so many minutes, cut in which way, and learning from what?

    python -m tests.benchmarks.quality.students --teacher FOLDER --work FOLDER --minutes 0 5 20 60 --out FILE.json

Every student learns from the same rows and, but for labels alone and full logits, the same records of 12 ids. An arm is
a cut (how many layers, chosen by measurement or evenly spread, and at which width) and what is learned from. A training
has as many steps as fit the minutes at the speed of its own first steps, so that the learning rate falls to its end
within them; minutes are of the processor's time on ``--threads`` threads, since other work may share the machine. The
text is Python's own documentation. Hold-out figures are those of a run's report, with samples to read.
Finished trainings stay in ``--work``: the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.data.tokens import TokenFile
from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.narrow import width_of
from engine.model_files.spec import ModelSpec, read_spec
from engine.models.derive import derive_student, is_valid_cut, layer_kinds, layers_to_keep
from engine.models.load import load_causal_lm, load_tokenizer
from engine.phases.student_result import holdout_bytes
from engine.planner.defaults import learning_rate_for
from engine.planner.shape import shape_of
from engine.planner.sizes import head_chunk_tokens
from engine.student.batches import Source
from engine.student.checkpoint import Checkpoints
from engine.student.generate import continuations, holdout_prompts
from engine.student.judge import Unigram, bits_per_byte, chance_sums
from engine.student.learn import next_logits_of
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.schedule import Schedule
from engine.student.train import Progress, Training, look, train
from engine.teacher.depth import Bench, CutRules, Depth, Piece, choose_depth, piece_of
from engine.teacher.width import choose_width
from tests.benchmarks.quality.arms import Setting
from tests.benchmarks.quality.material import ComparedSource, Material

_RECORD_SIZE, _FIRST_STEPS = 12, 3
# Processor seconds of a step, measured once for all arms of one shape: they get the same number of steps.
_SECONDS: dict[tuple[Any, ...], float] = {}


@dataclass(frozen=True)
class Arm:
    """A student.

    Attributes:
        name: in the table.
        share: of the teacher's layers that it keeps.
        even: evenly spread layers instead of measured ones.
        narrow: narrowed to the parameters that ``share`` of the layers has.
        kept: share of the layers that a narrow student keeps.
        learns: from ``records``, ``labels`` alone or ``full`` logits.
        kd_weight: of the records against the label.
        rate: factor on the peak learning rate.
        batch: factor on the rows in a step.
        warmup: share of the steps over which the learning rate rises.
    """

    name: str
    share: float
    even: bool = False
    narrow: bool = False
    kept: float = 1.0
    learns: str = "records"
    kd_weight: float = 1.0
    rate: float = 1.0
    batch: float = 1.0
    warmup: float = 0.05


ARMS = (
    Arm("two thirds of the layers, measured", 2 / 3),
    Arm("two thirds, evenly spread", 2 / 3, even=True),
    Arm("half of the layers, measured", 1 / 2),
    Arm("half, evenly spread", 1 / 2, even=True),
    Arm("all layers, as narrow as two thirds", 2 / 3, narrow=True),
    Arm("five sixths of the layers, narrower", 2 / 3, narrow=True, kept=5 / 6),
    Arm("half, measured, labels alone", 1 / 2, learns="labels"),
    Arm("half, measured, full logits", 1 / 2, learns="full"),
)
# Defaults to compare: one thing at a time is other than in the first of them.
_TWO_THIRDS = 2 / 3
DEFAULTS = (
    Arm("measured", _TWO_THIRDS),
    Arm("evenly spread", _TWO_THIRDS, even=True),
    Arm("labels alone", _TWO_THIRDS, learns="labels"),
    Arm("learning rate x 3", _TWO_THIRDS, rate=3),
    Arm("learning rate / 3", _TWO_THIRDS, rate=1 / 3),
    Arm("kd_weight 0.5", _TWO_THIRDS, kd_weight=0.5),
    Arm("kd_weight 0.9", _TWO_THIRDS, kd_weight=0.9),
    Arm("half the batch", _TWO_THIRDS, batch=1 / 2),
    Arm("twice the batch", _TWO_THIRDS, batch=2),
    Arm("warm-up 0.2", _TWO_THIRDS, warmup=0.2),
)
SETS = {"students": ARMS, "defaults": DEFAULTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=DEMO_TEACHER)
    parser.add_argument("--work", type=Path, required=True, help="a folder for rows, records and what is finished")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0, 5, 20, 60])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", choices=[*SETS], default="students", help="cuts and targets, or a run's defaults")
    parser.add_argument("--arms", nargs="*", help="only those with these names")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--holdout-rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, help="at its peak; the planner's when not given")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = Setting(
        "students",
        arguments.teacher,
        arguments.precision,
        arguments.rows,
        arguments.holdout_rows,
        arguments.length,
        1,
        arguments.batch,
        0,
        arguments.learning_rate or 0.0,
        arguments.seeds,
    )
    material = Material(setting, arguments.work)
    material.make_store("sampled", _RECORD_SIZE, 0)
    context = _context(material, arguments.teacher, arguments.work)
    arms = [arm for arm in SETS[arguments.set] if not arguments.arms or arm.name in arguments.arms]
    done = _finished(arguments.work)
    for minutes in arguments.minutes:  # the short ones first, so that any end leaves a whole comparison
        for seed in range(arguments.seeds if minutes else 1):
            for arm in arms:
                key = f"{arm.name}/{minutes:g}/{seed}"
                if key not in done and (minutes or _is_a_cut(arm)):
                    done[key] = _train(arm, minutes, seed, setting, material, arguments)
                    with (arguments.work / "students.jsonl").open("a") as file:
                        file.write(json.dumps({"key": key, **done[key]}) + "\n")
    print(_table(arms, done, arguments.minutes, context))
    if arguments.out:
        result = {
            "question": (__doc__ or "").splitlines()[0],
            "setting": {
                name: str(value.name) if isinstance(value, Path) else value
                for name, value in vars(arguments).items()
                if name not in ("work", "out")
            },
            "context": context,
            "arms": [asdict(arm) for arm in arms],
            "trainings": done,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "date": time.strftime("%Y-%m-%d"),
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _context(material: Material, teacher: Path, work: Path) -> dict[str, Any]:
    """The teacher and chance on the hold-out."""
    from engine.student.evaluate import HoldoutBatches, evaluate_teacher

    store = material.store("sampled", _RECORD_SIZE, 0)
    source = Source(material.tokens, store)
    figures = evaluate_teacher(HoldoutBatches(source, 8))
    sums = chance_sums(source, Unigram.of(material.tokens), micro_batch=8, eos_id=material.tokens.eos_id)
    num_bytes = holdout_bytes(material.tokens, load_tokenizer(teacher))
    return {
        "teacher_loss": figures.holdout_loss,
        "chance": float(sums[:, 1].sum() / sums[:, 0].sum()),
        "holdout_tokens": figures.tokens,
        "holdout_bytes": num_bytes,
        "train_tokens": material.tokens.num_scored("train"),
    }


def _is_a_cut(arm: Arm) -> bool:
    """Whether an arm's student is another one already before the first step."""
    return arm == Arm(arm.name, arm.share, arm.even, arm.narrow, arm.kept)


def _first_of(arm: Arm, material: Material, setting: Setting, work: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with an arm's first weights, made once for all arms with its cut, and what was cut."""
    name = f"first-{arm.share:.3f}{'-even' * arm.even}{'-narrow' * arm.narrow}"
    name += f"-{arm.kept:.3f}" if arm.kept < 1 else ""
    folder, told = work / name, work / f"{name}.json"
    if not told.exists():
        told.write_text(json.dumps(_cut(arm, material, setting, folder)))
    cut: dict[str, Any] = json.loads(told.read_text())
    return folder, cut


def _cut(arm: Arm, material: Material, setting: Setting, folder: Path) -> dict[str, Any]:
    """Write an arm's first weights, in the way of a run; returns what was cut."""
    spec, tokens, teacher = read_spec(setting.teacher), material.tokens, material.teacher
    count = max(1, round(arm.share * spec.num_layers))
    text = piece_of(tokens, "train", setting.batch)
    if arm.narrow:
        layers = list(range(spec.num_layers))
        if arm.kept < 1:
            layers = list(_measured_depth(spec, material, text, setting, round(arm.kept * spec.num_layers)).kept)
        share = _share_of_width(spec, count, len(layers))
        width = width_of(spec, share)
        parts = choose_width(
            teacher,
            text,
            layers,
            width,
            head_dim=spec.head_dim,
            outputs=[None] * spec.num_layers,
            safe_point=lambda: None,
        )
        derive_student(read_spec(setting.teacher), layers, folder, width=width, parts=parts)
        return {"layers": layers, "width": share}
    if arm.even:
        even = layers_to_keep(spec.num_layers, count)
        derive_student(read_spec(setting.teacher), even, folder)
        return {"layers": even, "way": "even"}
    depth = _measured_depth(spec, material, text, setting, count)
    derive_student(read_spec(setting.teacher), depth.kept, folder)
    return {"layers": list(depth.kept), "way": depth.way}


def _measured_depth(spec: ModelSpec, material: Material, text: list[Piece], setting: Setting, count: int) -> Depth:
    """The choice of so many layers, as in a run."""
    return choose_depth(
        Bench(
            material.teacher,
            vocab_size=material.tokens.vocab_size,
            wave_tokens=4_096,
            chunk_tokens=head_chunk_tokens(spec.vocab_size),
            safe_point=lambda: None,
        ),
        text,
        piece_of(material.tokens, "holdout", setting.batch),
        CutRules(
            num_layers=count,
            named=None,
            even=lambda number: layers_to_keep(spec.num_layers, number),
            kinds=layer_kinds(spec),
            is_valid=lambda kept: is_valid_cut(spec, kept),
        ),
    )


def _share_of_width(spec: ModelSpec, num_layers: int, kept: int) -> float:
    """The share of neurons and heads at which the layers that are kept have the parameters of so many whole ones."""
    wanted = shape_of(spec).with_layers(num_layers).parameters
    shape = shape_of(spec).with_layers(kept)

    def distance(share: float) -> int:
        width = width_of(spec, share)
        return abs(shape.with_width(width.neurons, width.heads, width.kv_heads).parameters - wanted)

    return min((step / 100 for step in range(10, 100)), key=distance)


def _train(
    arm: Arm, minutes: float, seed: int, setting: Setting, material: Material, arguments: argparse.Namespace
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        first, cut = _first_of(arm, material, setting, arguments.work)
        batch = max(1, round(arm.batch * setting.batch))
        store = material.store("sampled", _RECORD_SIZE, 0)
        source: Source = Source(material.tokens, store)
        if arm.learns == "full":
            source = ComparedSource(material, [store], full=True)

        def training(steps: int, model: transformers.PreTrainedModel) -> Training:
            rate = arm.rate * (arguments.learning_rate or learning_rate_for(model.num_parameters()))
            order = Order.plan(
                num_rows=material.tokens.num_rows("train"),
                micro_batch=batch,
                gradient_accumulation=1,
                seed=seed,
                steps=steps,
            )
            return Training(
                learner=Learner(model, dtype=getattr(torch, setting.precision), gradient_checkpointing=False),
                optimizer=AdamW(model.named_parameters(), weight_decay=0.01, bits=32),
                source=source,
                order=order,
                schedule=Schedule(rate, steps, arm.warmup),
                objective=Objective(
                    material.tokens.vocab_size, "unbiased", 0.0 if arm.learns == "labels" else arm.kd_weight, 1.0
                ),
                clip_norm=1.0,
                chunk_tokens=head_chunk_tokens(material.tokens.vocab_size),
                checkpoint_every=steps,
                evaluation_rows=1,
                evaluations=1,
            )

        def run(steps: int) -> tuple[Training, float]:
            torch.manual_seed(seed)
            made = training(steps, load_causal_lm(first, dtype=torch.float32))
            began = time.process_time()
            events = EventWriter(Path(folder) / "events.jsonl")
            checkpoints = Checkpoints(Path(folder) / f"checkpoints-{steps}", keep=1, on_problem=lambda problem: None)
            train(made, Progress(), checkpoints, Channel(events))
            return made, time.process_time() - began

        if minutes:
            speed = (cut["width"] if arm.narrow else arm.share, arm.narrow, arm.kept, arm.learns == "full", batch)
            if speed not in _SECONDS:
                _, few = run(_FIRST_STEPS)
                _, more = run(2 * _FIRST_STEPS)
                _SECONDS[speed] = max(1e-3, (more - few) / _FIRST_STEPS)
            steps = max(1, round(minutes * 60 * arguments.threads / _SECONDS[speed]))
            trained, seconds = run(steps)
        else:
            steps, seconds, trained = 0, 0.0, training(1, load_causal_lm(first, dtype=torch.float32))
        trained = Training(**{**vars(trained), "source": Source(material.tokens, store)})
        found = look(trained)
        return {
            **found.as_dict(),
            "parameters": trained.learner.model.num_parameters(),
            **cut,
            "rate": trained.schedule.peak,
            "rows_in_a_step": batch,
            "steps": steps,
            "processor_seconds": seconds,
            "samples": _samples(trained, material.tokens, setting.teacher, seed),
        }


def _samples(trained: Training, tokens: TokenFile, teacher: Path, seed: int) -> list[str]:
    tokenizer = load_tokenizer(teacher)
    prompts = holdout_prompts(tokens, count=2)
    texts = continuations(
        next_logits_of(trained.learner), prompts, vocab_size=tokens.vocab_size, end_ids=tokens.end_ids, seed=seed
    )
    return [f"{tokenizer.decode(p)} | {tokenizer.decode(t)}" for p, t in zip(prompts, texts, strict=True)]


def _table(arms: list[Arm], done: dict[str, Any], minutes: list[float], context: dict[str, Any]) -> str:
    lines = [
        f"teacher {context['teacher_loss']:.3f}, chance {context['chance']:.3f} nats a token",
        "| student | minutes | loss | KL | top-1 | bits a byte |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        for budget in minutes:
            runs = [entry for key, entry in done.items() if key.startswith(f"{arm.name}/{budget:g}/")]
            if not runs:
                continue
            losses = [entry["holdout_loss"] for entry in runs]
            bits = [bits_per_byte(loss, context["holdout_tokens"], context["holdout_bytes"]) or 0.0 for loss in losses]
            cells = (
                _spread(losses, ".3f"),
                _spread([entry["kl_to_teacher"] for entry in runs], ".3f"),
                _spread([entry["top1_agreement"] for entry in runs], ".1%"),
                _spread(bits, ".3f"),
            )
            lines.append(f"| {arm.name} | {budget:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    """The median, and the lowest and the highest of several seeds."""
    median = format(statistics.median(values), form)
    return median if len(values) == 1 else f"{median} ({min(values):{form}} to {max(values):{form}})"


def _finished(work: Path) -> dict[str, Any]:
    path = work / "students.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {entry.pop("key"): entry for entry in entries}


if __name__ == "__main__":
    main()

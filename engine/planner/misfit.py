"""Messages for a run that does not fit: the missing amount, its parts, and the nearest setting that fits."""

from __future__ import annotations

from pathlib import Path

from engine.errors import DoesNotFit
from engine.format import format_bytes, format_count
from engine.planner import disk as disk_formulas
from engine.planner.phase_settings import Footprint
from engine.planner.preparing import prepare_bytes
from engine.planner.recommend import Proposal, Question, nearest_that_fits
from engine.settings.config import RunConfig

_PART_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "the optimizer's states",
    "activations": "activations",
    "logits": "blocks of logits",
    "other": "Python, torch and transformers",
}


def memory(question: Question, answer: Proposal) -> DoesNotFit:
    """A phase needs more memory than there is."""
    budget = question.budget
    phases = {"teacher": answer.teacher.footprint, "student": answer.student.footprint}
    phase, footprint = max(phases.items(), key=lambda item: budget.excess(item[1]))
    needed, room, which, flag = _where(question, footprint)
    parts = sorted(footprint.parts.items(), key=lambda part: -part[1])[:3]
    listed = ", ".join(f"{_PART_NAMES[name]} {format_bytes(size)}" for name, size in parts if size)
    setting = answer.teacher.setting if phase == "teacher" else answer.student.setting
    what = (
        f"The {phase} phase needs {format_bytes(needed)} of {which} with rows of {answer.length} tokens, "
        f"{setting.batch} at a time; the budget is {format_bytes(room)}."
    )
    if question.ranks > 1:
        what = what.replace("needs", "needs for each process", 1)[:-1] + f" for each of {question.ranks}."
    todo, remedies = _todo(question, answer, flag)
    return DoesNotFit(what, f"Most of it: {listed}.", todo, remedies)


def preparing(question: Question) -> DoesNotFit | None:
    """The phase that prepares needs more memory than there is; None where it does not."""
    budget, vocab_size = question.budget, question.teacher.vocab_size
    needed, room, flag = prepare_bytes(vocab_size, question.config.data), budget.ram_bytes, "ram_budget"
    if budget.where.is_host:
        room, flag = budget.memory_bytes, "memory_budget"
    if needed <= room:
        return None
    enough = _rounded(needed)
    return DoesNotFit(
        f"The prepare phase needs {format_bytes(needed)} of memory; the budget is {format_bytes(room)}.",
        f"Most of it: Python, torch and transformers, and a tokenizer of {format_count(vocab_size)} ids.",
        f"It fits with --{flag} {enough}MB.",
        [{flag: f"{enough}MB"}],
    )


def disk(needed: int, free: int, folder: Path, config: RunConfig, question: Question, answer: Proposal) -> DoesNotFit:
    """The run's folder will not have room."""
    text = question.text
    cache = disk_formulas.cache_bytes(text.all_tokens(answer.length), config.record_size, question.teacher.vocab_size)
    setting = answer.student.setting
    checkpoint = disk_formulas.checkpoint_bytes(setting.trained_parameters(answer.shape), setting.optimizer)
    what = f"The run needs {format_bytes(needed)} of disk; {folder} has {format_bytes(free)} free."
    checkpoints = f"each of {config.keep_checkpoints + 2} checkpoints {format_bytes(checkpoint)}"
    why = f"Records take {format_bytes(cache)}, {checkpoints}."
    over = needed - free
    rows = text.train_rows(answer.length) or 0
    if cache > over and rows:
        fewer = int(rows * (1 - over / cache) * 0.9)
        return DoesNotFit(
            what,
            why,
            f"It fits with --samples {max(1, fewer)} (of {format_count(rows)} rows), or elsewhere: --output_dir.",
            [{"samples": max(1, fewer)}],
        )
    return DoesNotFit(what, why, f"Free {format_bytes(over)}, or choose another --output_dir.")


def _where(question: Question, footprint: Footprint) -> tuple[int, int, str, str]:
    budget = question.budget
    if budget.where.is_host:
        return footprint.needed_bytes, budget.memory_bytes, "memory", "memory_budget"
    on_device = footprint.peak_bytes + budget.context_bytes
    if on_device - budget.memory_bytes >= footprint.needed_bytes - budget.ram_bytes:
        return on_device, budget.memory_bytes, f"memory on {budget.device}", "memory_budget"
    return footprint.needed_bytes, budget.ram_bytes, "main memory", "ram_budget"


def _todo(question: Question, answer: Proposal, flag: str) -> tuple[str, list[dict[str, object]]]:
    """Return settings that fit, as a sentence and as values."""
    budget = question.budget
    needs = max(_where(question, part.footprint)[0] for part in (answer.teacher, answer.student))
    enough = _rounded(max(needs * question.ranks, prepare_bytes(question.teacher.vocab_size, question.config.data)))
    found = nearest_that_fits(question, answer)
    as_it_is = f"--{flag} {enough}MB"
    more: dict[str, object] = {flag: f"{enough}MB"}
    if found is None:
        return f"Nothing smaller fits: choose {_smaller_models(question, answer)}, or give it {as_it_is}.", [more]
    changes, smaller = found
    peak = max(_where(question, part.footprint)[0] for part in (smaller.teacher, smaller.student))
    flags = " ".join(_flag(name, value) for name, value in changes.items())
    assert peak <= max(budget.memory_bytes, budget.ram_bytes)
    return f"It fits with {flags} ({format_bytes(peak)}), or as it is with {as_it_is}.", [changes, more]


def _rounded(needed: int) -> int:
    """Megabytes that are enough, in steps of 50."""
    return -(-needed // (50 * 10**6)) * 50


def _smaller_models(question: Question, answer: Proposal) -> str:
    phases = {"teacher": answer.teacher.footprint, "student": answer.student.footprint}
    too_large = [name for name, footprint in phases.items() if not question.budget.fits(footprint)]
    floor = min(footprint.parts["other"] for footprint in phases.values())
    if question.budget.where.is_host and floor >= question.budget.memory_bytes:
        return "another machine, as Python and torch alone need more"
    return " and ".join(f"a smaller {name}" for name in too_large)


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {value}"

"""Messages for a run that does not fit: the missing amount, its parts, and the nearest setting that fits."""

from __future__ import annotations

from collections.abc import Sequence
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
    needed, room, which = _where(question, footprint)
    named = {_PART_NAMES[name]: size for name, size in footprint.parts.items()}
    if not budget.where.is_host:  # the libraries' own memory is main memory there
        named["the libraries' scratch memory"] = named.pop(_PART_NAMES["other"])
        named["the driver"] = budget.context_bytes
    parts = sorted(named.items(), key=lambda part: -part[1])[:3]
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    setting = answer.teacher.setting if phase == "teacher" else answer.student.setting
    what = (
        f"The {phase} phase needs {format_bytes(needed)} of {which} with rows of {answer.length} tokens, "
        f"{setting.batch} at a time; the budget is {format_bytes(room)}."
    )
    if question.ranks > 1:
        what = what.replace("needs", "needs for each process", 1)[:-1] + f" for each of {question.ranks}."
    todo, remedies = _todo(question, answer)
    return DoesNotFit(what, f"Most of it: {listed}.", todo, remedies)


def preparing(question: Question) -> DoesNotFit | None:
    """The phase that prepares needs more memory than there is; None where it does not."""
    budget, vocab_size = question.budget, question.teacher.vocab_size
    needed = prepare_bytes(vocab_size, question.config.data)
    room = budget.memory_bytes if budget.where.is_host else budget.ram_bytes
    if needed <= room:
        return None
    larger = _host_budgets(question, needed) if budget.where.is_host else _enough("ram_budget", needed)
    return DoesNotFit(
        f"The prepare phase needs {format_bytes(needed)} of memory; the budget is {format_bytes(room)}.",
        f"Most of it: Python, torch and transformers, and a tokenizer of {format_count(vocab_size)} ids.",
        f"It fits with {_flags(larger)}.",
        [larger],
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


def _where(question: Question, footprint: Footprint) -> tuple[int, int, str]:
    """Return the memory that is exceeded most: what is needed of it, what there is, and its name."""
    budget = question.budget
    if budget.where.is_host:
        return footprint.needed_bytes, budget.memory_bytes, "memory"
    on_device = footprint.peak_bytes + budget.context_bytes
    if on_device - budget.memory_bytes >= footprint.needed_bytes - budget.ram_bytes:
        return on_device, budget.memory_bytes, f"memory on {budget.device}"
    return footprint.needed_bytes, budget.ram_bytes, "main memory"


def _todo(question: Question, answer: Proposal) -> tuple[str, list[dict[str, object]]]:
    """Return settings that fit, as a sentence and as values."""
    budget = question.budget
    found = nearest_that_fits(question, answer)
    more = _larger_budgets(question, (answer.teacher.footprint, answer.student.footprint))
    as_it_is = _flags(more)
    if found is None:
        return f"Nothing smaller fits: choose {_smaller_models(question, answer)}, or give it {as_it_is}.", [more]
    changes, smaller = found
    peak = max(_where(question, part.footprint)[0] for part in (smaller.teacher, smaller.student))
    assert peak <= max(budget.memory_bytes, budget.ram_bytes)
    return f"It fits with {_flags(changes)} ({format_bytes(peak)}), or as it is with {as_it_is}.", [changes, more]


def _larger_budgets(question: Question, phases: Sequence[Footprint]) -> dict[str, object]:
    """Return budgets of the whole run with which its phases fit as they are."""
    budget = question.budget
    in_main = max(phase.needed_bytes for phase in phases) * question.ranks
    in_main = max(in_main, prepare_bytes(question.teacher.vocab_size, question.config.data))
    if budget.where.is_host:
        return _host_budgets(question, in_main)
    on_device = max(phase.peak_bytes for phase in phases) + budget.context_bytes
    larger: dict[str, object] = {}
    if on_device > budget.memory_bytes:
        larger |= _enough("memory_budget", on_device)
    if in_main > budget.ram_bytes:
        larger |= _enough("ram_budget", in_main)
    together = max(phase.peak_bytes + phase.needed_bytes for phase in phases) + budget.context_bytes
    if budget.where.shares_main_memory and together > max(budget.memory_bytes, budget.ram_bytes):
        larger |= _enough("memory_budget", together)
    return larger


def _host_budgets(question: Question, needed: int) -> dict[str, object]:
    """Return budgets for a run without a GPU: the smaller one counts, so that each one that is too small is raised."""
    given = {name: getattr(question.config, name) for name in ("memory_budget", "ram_budget")}
    small = [name for name, size in given.items() if size is not None and size < needed]
    return {name: words for each in small or ["memory_budget"] for name, words in _enough(each, needed).items()}


def _enough(budget: str, needed: int) -> dict[str, object]:
    return {budget: f"{_rounded(needed)}MB"}


def _flags(values: dict[str, object]) -> str:
    return " ".join(_flag(name, value) for name, value in values.items())


def _rounded(needed: int) -> int:
    """Megabytes that are enough, in steps of 50."""
    return -(-needed // (50 * 10**6)) * 50


def _smaller_models(question: Question, answer: Proposal) -> str:
    phases = {"teacher": answer.teacher.footprint, "student": answer.student.footprint}
    too_large = [name for name, footprint in phases.items() if not question.budget.fits(footprint)]
    floor = min(footprint.parts["other"] for footprint in phases.values())
    if question.budget.where.is_host and floor >= question.budget.memory_bytes:
        return "another machine, as Python and torch alone need more"
    if not question.budget.where.is_host and question.budget.context_bytes >= question.budget.memory_bytes:
        return "--device cpu, as the driver alone needs more of the GPU"
    return " and ".join(f"a smaller {name}" for name in too_large)


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {value}"

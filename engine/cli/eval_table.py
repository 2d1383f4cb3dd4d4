"""Results of ``tiny-distill-eval`` as text: a verdict in one sentence, and a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.student.verdict import FEWEST_DOCUMENTS, roughness, shown_kl

_AS_GOOD = 0.25  # nats a token; a loss that may be farther away is not called as good


@dataclass
class Findings:
    """Results of the evaluation; values are [mean, low, high] with 95 % intervals."""

    model: str
    text: str
    documents: int = 0
    tokens: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    teacher: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdict: str = ""


def verdict(found: Findings) -> str:
    """Return a summary of the results in one sentence."""
    if "loss" not in found.figures:
        return f"The tasks are judged above, {len(found.tasks)} in all; no text was scored."
    loss, low, high = found.figures["loss"]
    if found.documents < FEWEST_DOCUMENTS:
        return _of_few_documents(found, loss)
    sure = f"{loss:.3f} (95% {low:.3f} to {high:.3f})"
    if "loss_beyond_teacher" not in found.figures:
        guessed = {task: told for task, told in found.tasks.items() if told.get("guessing") and "share" in told}
        above = [task for task, told in guessed.items() if told["share"][1] > told["guessing"]]
        choices = list(guessed)
        tail = ""
        if choices:
            tail = f"; its answers are better than guessing in {', '.join(above)}" if above else (
                "; its answers are not shown to be better than guessing"
            )  # fmt: skip
        return f"The loss on this text is {sure}{tail}."
    away, nearest, farthest = found.figures["loss_beyond_teacher"]
    if farthest < 0:
        beside = f"better than the teacher by {-away:.3f}"
    elif nearest <= 0 and max(-nearest, farthest) > _AS_GOOD:
        beside = f"not shown to be better or worse than the teacher ({nearest:+.3f} to {farthest:+.3f})"
    elif nearest <= 0:
        beside = f"as good as the teacher within {max(-nearest, farthest):.3f}"
    else:
        beside = f"{away:.3f} ({nearest:.3f} to {farthest:.3f}) behind the teacher"
    if not found.before:
        return f"The loss is {sure}, {beside}."
    before = found.before["loss"]
    gained = "better than before" if high < before else "worse than before" if low > before else (
        "not shown to be better than before"
    )  # fmt: skip
    return f"The student is {gained} ({before:.3f}): its loss is {sure}, {beside}."


def _of_few_documents(found: Findings, loss: float) -> str:
    """Return the verdict on too few documents for an interval: it claims no difference."""
    named = (("before", found.before.get("loss")), ("the teacher's", found.teacher.get("loss")))
    beside = ", ".join(f"{who} {value:.3f}" for who, value in named if value is not None)
    told = f" ({beside})" if beside else ""
    on = "one document" if found.documents == 1 else f"{found.documents} documents"
    return f"The loss is {loss:.3f}{told}, on {on}: too few to tell how far others would differ."


_LABELS = {
    "loss": "loss, nats a token",
    "bits_per_byte": "bits a byte",
    "kl_to_teacher": "KL to the teacher",
    "top1_agreement": "same first choice",
}


def table(found: Findings) -> str:
    """Return the figures, the tasks and the verdict, as lines."""
    documents = f"{found.documents:,} document{'' if found.documents == 1 else 's'}"
    size = f": {found.tokens:,} tokens, {documents}" if found.figures else ""
    lines = [f"{found.model} on {found.text}{size}", ""]
    for name, label in _LABELS.items():
        if name not in found.figures:
            continue
        mean, low, high = found.figures[name]
        if name == "kl_to_teacher":  # its estimate from records may be a little below zero, which no KL is
            mean, low, high = map(shown_kl, (mean, low, high))
        beside = [
            f"{who} {figures[name]:.3f}"
            for who, figures in (("before", found.before), ("teacher", found.teacher))
            if name in figures
        ]
        more = f"   {', '.join(beside)}" if beside else ""
        lines.append(f"  {label:<20} {mean:.3f}{_interval(low, high)}{more}")
    for task, told in found.tasks.items():
        for metric, (mean, low, high) in told.get("metrics", {}).items():
            label = f"{task} {metric}"
            lines.append(f"  {label:<20} {mean:.3f}{_interval(low, high)}   {told['questions']} questions")
        if "guessing" in told and "share" not in told:
            lines.append(f"  {task:<20} not asked: no text here is long enough, or has enough different words")
        if "share" not in told:
            continue
        mean, low, high = told["share"]
        guessing = f"   guessing {told['guessing']:.0%}" if told["guessing"] else ""
        lines.append(f"  {task:<20} {mean:.0%}   95% {low:.0%} to {high:.0%}   {told['questions']} questions{guessing}")
    rough = roughness(found.tokens) if found.figures else None
    return "\n".join([*lines, "", " ".join(filter(None, (found.verdict, rough)))])


def _interval(low: float, high: float) -> str:
    """Nothing where the interval is the mean alone: then nothing is known of how sure the mean is."""
    return f"   95% {low:.3f} to {high:.3f}" if low < high else ""

"""Verdict on a student as text: the same on the console, in report.md, on the model card and on the screen.

Pure: it takes the report's own keys, and knows nothing of where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.data.holdout import ROUGH_BELOW_TOKENS

# KL to the teacher in nats a token, up to which these words are used. Judged by reading samples of students of two
# teachers beside their figures.
_WORDS = ((0.1, "hardly different"), (0.25, "close to it"), (0.8, "close, with gaps"), (2.0, "not fluent yet"))
_FAR = "far from fluent"

# Of the loss of a model that only counts tokens: above the first share a teacher does not know a text, above the second
# it hardly does. A language model on text of its kind has about half of it.
_IGNORANT, _DOUBTFUL = 0.97, 0.75

# Nats a token. A student that begins as its teacher (an adapter of the same model) differs from it by rounding alone,
# and a share of such a gap would say nothing.
_LEAST_GAP = 0.01

# Of a share's 95 % interval: a wider one says nothing about how far a student went.
_WIDEST_SHARE = 1.0

FEWEST_DOCUMENTS = 6
"""The range of n documents' values has the middle of all documents' with probability 1 - 2^(1-n): 94 % of five. An
interval of fewer documents is not one of 95 %, and none is given."""


def gap_closed(teacher: float, before: float, chance: float | None, after: float) -> float | None:
    """Share of the way to the teacher's hold-out loss, from the better of the student's beginning and chance.

    1 is the teacher's own loss, 0 no gain, below 0 worse. A student that begins below chance, as most cuts do, gets no
    credit for what counting tokens would give. Students that begin above chance are compared by :func:`skill`: of two
    with one loss, the one that began worse has gone the longer way.

    Returns:
        None where the beginning was at the teacher's loss, within rounding, or below it.
    """
    return _way(before if chance is None else min(before, chance), after, teacher)


def skill(teacher: float, chance: float, after: float) -> float | None:
    """Share of the way from chance to the teacher's hold-out loss at which a student has arrived.

    From the same data, the student with the higher loss never has the higher share, whatever each began with.

    Returns:
        None where chance is at the teacher's loss or below it.
    """
    return _way(chance, after, teacher)


def _way(start: float, now: float, goal: float) -> float | None:
    gap = start - goal
    return (start - now) / gap if gap > _LEAST_GAP else None


def gap_of(result: Mapping[str, Any]) -> float | None:
    """:func:`gap_closed` of a report, or of a student phase's result."""
    losses = (_loss(result, name) for name in ("teacher", "student_before", "student_after"))
    teacher, before, after = losses
    chance = (result.get("chance") or {}).get("holdout_loss")
    return gap_closed(teacher, before, None if chance is None else float(chance), after)


def headline(report: Mapping[str, Any]) -> str:
    """The result in one sentence that fits a line, true also where it is not what one hoped for."""
    teacher, before, after = (_loss(report, name) for name in ("teacher", "student_before", "student_after"))
    chance = (report.get("chance") or {}).get("holdout_loss")
    if _is_as_before(report):
        if abs(before - teacher) < _LEAST_GAP:
            return f"The student began as its teacher and has hardly changed: its hold-out loss is {after:.3f}."
        why = "Most often the steps are too few or the learning rate is too low."
        if 2 * _training(report, "skipped_steps") >= max(1, _training(report, "steps")):
            why = "Most of its steps were skipped; try a lower --learning_rate."
        return f"The student hardly changed: its hold-out loss is {after:.3f}, as before. {why}"
    if (worse := _got_worse(report)) is not None:
        return worse
    if chance is not None and after >= chance:
        return f"The student is no better than counting words: its loss is {after:.2f}, chance {chance:.2f}."
    if (grade := _doubt(teacher, chance)) is not None:
        return f"The teacher {grade} this text, so there was little to learn: loss {after:.2f}, its own {teacher:.2f}."
    if (beyond := _beyond_teacher(report)) is not None:
        return beyond
    kl, agreement = shown_kl(report["student_after"]["kl_to_teacher"]), report["student_after"]["top1_agreement"]
    return f"It answers like its teacher in {agreement:.0%} of places (KL {kl:.2f}): {in_a_word(kl)}."


def _got_worse(report: Mapping[str, Any]) -> str | None:
    """The sentence of a loss that rose; None where it did not. A worse teacher is followed at this price."""
    teacher, before, after = (_loss(report, name) for name in ("teacher", "student_before", "student_after"))
    match why_worse(report):
        case "teacher":
            first, last = _kl(report, "student_before"), _kl(report, "student_after")
            return (
                f"The student came closer to a teacher that is worse on this text than it was: KL {first:.2f} to "
                f"{last:.2f}, and its loss rose from {before:.3f} to {after:.3f} (the teacher's is {teacher:.3f}). "
                "A --kd_weight below 1 mixes in the labels."
            )
        case "same":
            return (
                f"The student began as its teacher and moved away from it: its hold-out loss rose from {before:.3f} to "
                f"{after:.3f}. It had nothing to learn there; a cut of the teacher has."
            )
        case "steps":
            return (
                f"The student got worse: its hold-out loss rose from {before:.3f} to {after:.3f}. "
                "Most often the learning rate is too high or there is too little text; try a lower --learning_rate."
            )
        case _:
            return None


def why_worse(report: Mapping[str, Any]) -> str | None:
    """Why a student's hold-out loss rose; None where it did not.

    Returns:
        ``teacher`` (it came closer to a worse one), ``same`` (it began as its teacher), or ``steps`` (their size or
        their number).
    """
    teacher, before, after = (_loss(report, name) for name in ("teacher", "student_before", "student_after"))
    if after - before < _LEAST_GAP:
        return None
    first, last = _kl(report, "student_before"), _kl(report, "student_after")
    if teacher - before >= _LEAST_GAP and first is not None and last is not None and last < first:
        return "teacher"
    if abs(teacher - before) < _LEAST_GAP and first is not None and first < _LEAST_GAP:
        return "same"
    return "steps"


def got_worse(report: Mapping[str, Any]) -> bool:
    """Whether the hold-out loss rose, whatever the reason: more steps of the same kind are no remedy."""
    return why_worse(report) is not None


def _is_as_before(report: Mapping[str, Any]) -> bool:
    """Whether loss and KL are those of the beginning, within rounding."""
    before, after = (_loss(report, name) for name in ("student_before", "student_after"))
    first, last = _kl(report, "student_before"), _kl(report, "student_after")
    same_kl = first is None or last is None or abs(last - first) < _LEAST_GAP
    return abs(after - before) < _LEAST_GAP and same_kl


def _beyond_teacher(report: Mapping[str, Any]) -> str | None:
    """The sentence of a loss below the teacher's by more than rounding, and by more than the documents vary.

    A student that began below it has not gone past it, and where nothing is known of how documents vary, only the
    figures are given.
    """
    teacher, before, after = (_loss(report, name) for name in ("teacher", "student_before", "student_after"))
    beyond = (report.get("intervals") or {}).get("loss_beyond_teacher")
    if teacher - after < _LEAST_GAP or (beyond is not None and beyond[1] >= 0):
        return None
    if teacher - before >= _LEAST_GAP:
        return (
            f"The student was better than its teacher on this text before: its hold-out loss is {after:.3f} "
            f"({before:.3f} before), the teacher's {teacher:.3f}."
        )
    if beyond is None:
        return f"The student's hold-out loss is below its teacher's: {after:.3f}, the teacher's {teacher:.3f}."
    return f"The student went past its teacher: hold-out loss {after:.3f}, the teacher's {teacher:.3f}."


def _training(report: Mapping[str, Any], name: str) -> int:
    """A count of the training, in a report or in a phase's result; 0 where it is not known."""
    return int((report.get("training") or report).get(name) or 0)


def is_success(report: Mapping[str, Any]) -> bool:
    """Whether the first sentence reports a student that learned from a teacher that knew the text."""
    teacher, after = (_loss(report, name) for name in ("teacher", "student_after"))
    chance = (report.get("chance") or {}).get("holdout_loss")
    no_gain = _is_as_before(report) or got_worse(report) or (chance is not None and after >= chance)
    return not no_gain and _doubt(teacher, chance) is None


def shown_kl(kl: float) -> float:
    """A KL as a user reads it: its estimate from records may be a little below zero, which no KL is."""
    return max(0.0, kl)


def _kl(report: Mapping[str, Any], name: str) -> float | None:
    value = report[name].get("kl_to_teacher")
    return None if value is None else shown_kl(float(value))


def in_a_word(kl: float) -> str:
    """How far a student is from its teacher, by their KL in nats a token."""
    return next((word for limit, word in _WORDS if kl <= limit), _FAR)


def quantization_in_words(quantization: str, cost: Mapping[str, Any]) -> str:
    """Return the losses of a quantized teacher and of its own weights as a sentence.

    Args:
        quantization: int8 or nf4.
        cost: ``quantized_loss``, ``own_loss`` and the ``tokens`` that both are measured on.
    """
    return (
        f"In {quantization} the teacher's loss is {cost['quantized_loss']:.3f}, in its own weights "
        f"{cost['own_loss']:.3f} (on {cost['tokens']:,} hold-out tokens)."
    )


def details(report: Mapping[str, Any]) -> list[str]:
    """Further sentences: the gap and from where, chance, how sure the figures are, and labels alone."""
    teacher, before, after = (_loss(report, name) for name in ("teacher", "student_before", "student_after"))
    chance = (report.get("chance") or {}).get("holdout_loss")
    ranges = report.get("intervals") or {}
    said = []
    if (share := report.get("gap_closed")) is not None and share >= 0:  # below 0 the first sentence has said it
        from_chance = chance is not None and chance < before
        start = f"chance ({chance:.2f})" if from_chance else f"its beginning ({before:.2f})"
        low, high = ranges.get("gap_closed", (share, share))
        sure = f", 95% interval {low:.0%} to {high:.0%}" if "gap_closed" in ranges else ""
        if high - low > _WIDEST_SHARE:
            said.append(f"The hold-out is too small to tell how far its loss went from {start} to its teacher's.")
        else:
            whole = ""
            if chance is not None and not from_chance and (arrived := skill(teacher, chance, after)) is not None:
                whole = f"; from chance ({chance:.2f}) it is {arrived:.0%}"
            said.append(
                f"Its loss went {share:.0%} of the way from {start} to its teacher ({teacher:.2f}){sure}{whole}."
            )
    if (doubt := doubts(teacher, chance)) is not None:
        said.append(doubt)
    if (rough := roughness(report["student_after"].get("tokens"))) is not None:
        said.append(rough)
    if (documents := report.get("holdout_documents")) and documents < FEWEST_DOCUMENTS:
        few = "one document" if documents == 1 else f"only {documents} documents"
        said.append(f"The hold-out has {few}: too few to tell how far others would differ.")
    if (cost := report.get("quantization_cost")) is not None:
        said.append(quantization_in_words(report["config"]["quantization"], cost))
    said += _of_the_steps(report)
    quantization = (report.get("adapter") or {}).get("quantization", "none")
    if quantization != "none":
        said.append(
            f"These figures are of the student's own weights in {quantization}. The written student has them as they "
            "were stored, and tiny-distill-eval measures it."
        )
    labels = (report.get("compare") or {}).get("labels")
    if labels:
        said.append(
            f"The same student on labels alone, with the same steps: loss {labels['holdout_loss']:.3f} (this one "
            f"{after:.3f}), KL {shown_kl(labels['kl_to_teacher']):.3f} ({_kl(report, 'student_after') or 0.0:.3f})."
        )
    return said


def _of_the_steps(report: Mapping[str, Any]) -> list[str]:
    """Sentences about steps that were skipped, and about a student that is not that of the last step."""
    steps, skipped, best = (_training(report, name) for name in ("steps", "skipped_steps", "best_step"))
    said = []
    if skipped:
        were = "step was" if skipped == 1 else "steps were"
        said.append(f"{skipped:,} of {steps:,} {were} skipped, as loss or gradient was not a number, or far too large.")
    if 0 < best < steps:
        said.append(
            f"This is the student of step {best:,} of {steps:,}: its loss on this hold-out was the lowest, later ones "
            "had a higher one."
        )
    return said


def doubts(teacher: float, chance: float | None) -> str | None:
    """Return a warning for a teacher that hardly knows the text; None if it does."""
    grade = _doubt(teacher, chance)
    if grade is None:
        return None
    figures = f"its loss is {teacher:.2f}, and a model that only counts how often each token comes has {chance:.2f}"
    return f"The teacher {grade} this text: {figures}."


def roughness(tokens: float | None) -> str | None:
    """Return a warning for a hold-out of few tokens; None where it has enough, or where their number is not known."""
    if tokens is None or tokens >= ROUGH_BELOW_TOKENS:
        return None
    return f"The hold-out has only {tokens:,.0f} tokens: figures measured with it are rough."


def _doubt(teacher: float, chance: float | None) -> str | None:
    if chance is None or teacher < _DOUBTFUL * chance:
        return None
    return "does not know" if teacher >= _IGNORANT * chance else "hardly knows"


def _loss(result: Mapping[str, Any], name: str) -> float:
    return float(result[name]["holdout_loss"])

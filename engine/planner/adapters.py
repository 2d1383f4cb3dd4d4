"""Low-rank adapters in a plan: what the settings ask for, and what the student's linear layers allow.

Reads names and shapes out of the headers of the student's files; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.errors import Problem, SettingsError
from engine.model_files.adapter_shape import AdapterShape
from engine.planner.shape import CARRIES_A_STATE, ModelShape
from engine.settings.config import RunConfig

ALL = "all-linear"
"""In peft, this word stands for all linear layers of the decoder."""
# Parts of a model outside of its decoder layers, by the last word of their names.
_EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "wte", "wpe", "embed_positions", "word_embeddings", "embeddings"})
_HEADS = frozenset({"lm_head", "embed_out", "output", "head"})
DEFAULT_RANK = 64
"""The rank where the settings leave it open; smaller where a linear layer is smaller."""
# Schulman et al. 2025, https://thinkingmachines.ai/blog/lora/: with alpha 32 the best learning rate is about ten times
# that of all weights, whatever the rank. At rank 64 an alpha of 64 and five times the rate give steps of the same size.
ALPHA_PER_RANK = 1.0
"""Alpha over rank where the settings leave alpha open."""
RATE_FACTOR = 5.0
"""Learning rate of an adapter over that of the whole student."""


def targets_of(lora_targets: str | None) -> tuple[str, ...]:
    """The linear layers that the setting names; none where all are meant."""
    words = (lora_targets or "").replace(",", " ").split()
    return () if words == [ALL] else tuple(dict.fromkeys(words))


def adapter_shape(rank: int, alpha: float | None, lora_targets: str | None) -> AdapterShape:
    """The adapter of a rank above 0; the usual alpha where it is left open."""
    return AdapterShape(rank, alpha or ALPHA_PER_RANK * rank, targets_of(lora_targets))


def default_rank(shape: ModelShape, targets: tuple[str, ...]) -> int:
    """The rank where it is left open."""
    sides = [min(linear.rows, linear.columns) for linear in shape.adapted(targets)]
    return min([DEFAULT_RANK, *sides])


def check_adapter(config: RunConfig, shape: ModelShape) -> None:
    """Refuse targets that the student does not have, and a rank above the size of a linear layer.

    Raises:
        SettingsError: with all problems, and what there is.
    """
    if not config.wants_adapter:
        return
    if config.student_quantization != "none" and shape.is_quantized:
        raise SettingsError(
            [
                Problem(
                    "student_quantization",
                    config.student_quantization,
                    f"{shape.name} is stored quantized already; leave this out, or use its unquantized weights",
                )
            ]
        )
    if config.student_layer_by_layer and not shape.has_plain_head:
        raise SettingsError(
            [
                Problem(
                    "student_layer_by_layer",
                    True,
                    f"the head of {shape.name} scales or caps its logits, and a streamed student's loss is computed in "
                    "slices of a plain head; leave this out",
                )
            ]
        )
    is_packed = config.packing and "packing" in config.model_fields_set
    if config.student_layer_by_layer and is_packed and shape.model_type in CARRIES_A_STATE:
        accepted = f"a streamed {shape.model_type} cannot be cut between the documents of a row; use --no_packing"
        raise SettingsError([Problem("packing", True, accepted)])
    problems = adapter_problems(
        config.lora_rank,
        config.lora_targets,
        shape.name,
        lambda targets: [(linear.name, linear.rows, linear.columns) for linear in shape.adapted(targets)],
    )
    if problems:
        raise SettingsError(problems)


def adapter_problems(
    lora_rank: int | None,
    lora_targets: str | None,
    student: str,
    adapted: Callable[[Sequence[str]], list[tuple[str, int, int]]],
) -> list[Problem]:
    """Return the problems of the adapter that the settings ask for.

    Args:
        lora_rank: as it is set; None while it is open.
        lora_targets: as they are set.
        student: the student's name, for the messages.
        adapted: name, outputs and inputs of each linear layer of its decoder that an adapter of some targets changes.
    """
    targets = targets_of(lora_targets)
    kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name, _, _ in adapted(())))
    if not kinds:
        return [
            Problem(
                "lora_rank",
                lora_rank,
                f"{student} has no linear layers of its own in its decoder layers; train all weights: --lora_rank 0",
            )
        ]
    if lora_targets is not None and not lora_targets.replace(",", " ").split():
        return [Problem("lora_targets", lora_targets, f"name some of {kinds}")]
    if unknown := [target for target in targets if not adapted([target])]:
        return [Problem("lora_targets", lora_targets, _unknown(unknown, student, kinds))]
    name, rows, columns = min(adapted(targets), key=lambda linear: min(linear[1:]))
    if (lora_rank or 0) > min(rows, columns):
        return [
            Problem(
                "lora_rank",
                lora_rank,
                f"at most {min(rows, columns)} for {student}: {name.rpartition('.')[2]} is {rows:,} × {columns:,}, and "
                "an adapter of a higher rank would be larger than the weight that it changes",
            )
        ]
    return []


def _unknown(targets: Sequence[str], student: str, kinds: str) -> str:
    """Why these targets get no adapter."""
    last = [target.rpartition(".")[2] for target in targets]
    outside = [*(word for word in last if word in _EMBEDDINGS), *(word for word in last if word in _HEADS)]
    if len(outside) < len(targets):
        missing = ", ".join(target for target, word in zip(targets, last, strict=True) if word not in outside)
        return f"{student} has no linear layer {missing} in its decoder; it has {kinds}"
    parts = [
        f"{word} is {'the embedding' if word in _EMBEDDINGS else 'the output matrix'} of {student}" for word in outside
    ]
    return (
        f"{' and '.join(parts)}, and an adapter changes the decoder's linear layers alone: name some of {kinds}, or "
        "train all weights with --lora_rank 0"
    )

"""One optimizer step: several micro-batches and one update, or none if a number is NaN or infinite.

The loss of a step is the sum over the scored tokens of *all* its micro-batches, divided by their number. So the
division into micro-batches makes no difference; gradients are accumulated over them and cleared once per step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.machine.torch_device import exact_home
from engine.student.batches import StepPart
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.optimizer import AdamW
from engine.student.world import ONE_PROCESS, World

# float16 gradients underflow, so the loss is multiplied; the factor falls when a gradient overflows and rises slowly.
_FIRST_SCALE, _SCALE_GROWTH_STEPS = 2.0**16, 2000


@dataclass(frozen=True)
class StepResult:
    """Result of a step; each loss is a mean over its scored tokens.

    Attributes:
        loss: the objective.
        ce: cross-entropy to the labels.
        kd: KD, see :func:`engine.student.loss.target_terms`.
        grad_norm: of the whole gradient, before it was clipped.
        tokens: scored tokens.
        applied: whether the weights were changed; False where a loss or a gradient was NaN or infinite.
        is_bad: whether that was a bad number (and not float16's search for its factor), or a loss that has exploded.
    """

    loss: float
    ce: float
    kd: float
    grad_norm: float
    tokens: int
    applied: bool
    is_bad: bool


@dataclass
class LossScale:
    """The factor on a float16 loss; 1 for other formats.

    Source: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2.
    """

    value: float = 1.0
    good_steps: int = 0

    @classmethod
    def of(cls, dtype: torch.dtype) -> LossScale:
        """Return the initial factor of a number format."""
        return cls(_FIRST_SCALE if dtype == torch.float16 else 1.0)

    def take(self, overflowed: bool) -> bool:
        """Halve or raise the factor after a step; return whether an overflow was only part of its search."""
        if self.value == 1.0:
            return False
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.value /= 2
        elif self.good_steps % _SCALE_GROWTH_STEPS == 0:
            self.value *= 2
        return overflowed


@dataclass(frozen=True)
class StepSettings:
    """Settings of one step.

    Attributes:
        objective: the loss.
        learning_rate: of this step.
        clip_norm: largest norm of the gradient; 0 never clips.
        chunk_tokens: positions whose logits exist at a time, where a step computes whole logits.
        loss_scale: for float16.
        exploded_above: a step with a larger loss changes nothing.
        world: the ranks that share the step.
        before_update: called before weights and moments change.
    """

    objective: Objective
    learning_rate: float
    clip_norm: float
    chunk_tokens: int
    loss_scale: LossScale = field(default_factory=LossScale)
    exploded_above: float = math.inf
    world: World = ONE_PROCESS
    before_update: Callable[[], None] = lambda: None


def train_step(learner: Learner, parts: Iterable[StepPart], optimizer: AdamW, settings: StepSettings) -> StepResult:
    """Do one step.

    Args:
        learner: the student, in training mode.
        parts: the step's micro-batches, on the CPU; with several ranks, those of this rank.
        optimizer: of the student's parameters.
        settings: of the step.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=exact_home(learner.device))
    tokens = 0
    is_lookup = learner.looked_up_in() is not None
    for part in parts:
        tokens = part.num_scored
        if part.batch is None:
            continue
        batch = part.batch.to(learner.device)
        with learner.sparse_embedding() if is_lookup else contextlib.nullcontext():
            states = learner.hidden_states(batch)
        loss = learner.loss(
            states,
            batch,
            objective=settings.objective,
            chunk_tokens=settings.chunk_tokens,
            scale=settings.loss_scale.value / max(1, part.num_scored) * settings.world.loss_factor,
        )
        del states
        embedding = learner.looked_up_in()  # of a sharded student it is gathered now
        if embedding is not None and embedding.grad is None and settings.world.is_sharded and not learner.tied:
            embedding.grad = torch.zeros_like(embedding)  # FSDP2 adds up whole gradients, at once
        loss.loss.backward()
        if embedding is not None and embedding.grad is not None and embedding.grad.is_sparse:
            # The optimizer wants it whole; before the backward pass it would lie beside all activations.
            embedding.grad = embedding.grad.to_dense()
        sums += torch.stack([loss.ce_sum, loss.kd_sum])
        del loss
    return finish_step(learner, optimizer, sums, tokens, settings)


def finish_step(learner: Learner, optimizer: AdamW, sums: Tensor, tokens: int, settings: StepSettings) -> StepResult:
    """Add up the gradients of all ranks, and apply them or drop them; otherwise as :func:`train_step`.

    ``sums`` [2] are the cross-entropy and the KD of this rank's scored tokens; all ranks have ``tokens`` of them.
    """
    loss_scale = settings.loss_scale
    sums = settings.world.add_up(sums, optimizer.parameters.values())
    gradients = [parameter.grad for parameter in optimizer.parameters.values() if parameter.grad is not None]
    # One question to the device: each makes the CPU wait for all that was launched.
    ce_sum, kd_sum, norm = torch.cat([sums, settings.world.norm(gradients).view(1)]).tolist()
    ce, kd, norm = ce_sum / max(1, tokens), kd_sum / max(1, tokens), norm / loss_scale.value
    loss_value = blended(ce, kd, settings.objective)
    is_finite = math.isfinite(loss_value) and math.isfinite(norm)
    searching = loss_scale.take(not is_finite)
    is_usable = is_finite and loss_value <= settings.exploded_above
    if is_usable and gradients:
        _scale(gradients, clip_factor(norm, settings.clip_norm) / loss_scale.value)
        settings.before_update()
        optimizer.begin_step(settings.learning_rate)
        optimizer.step()
    for parameter in optimizer.parameters.values():
        parameter.grad = None
    learner.model.zero_grad(set_to_none=True)
    return StepResult(loss_value, ce, kd, norm, tokens, is_usable and bool(gradients), not is_usable and not searching)


def blended(ce: float, kd: float, objective: Objective) -> float:
    """The objective's value; a part without weight is left out, whatever it is."""
    weight, factor = objective.kd_weight, objective.temperature**2
    return (weight * factor * kd if weight else 0.0) + ((1 - weight) * ce if weight < 1 else 0.0)


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return the factor that limits a gradient of this norm to ``clip_norm`` (0: no limit)."""
    return min(1.0, clip_norm / max(norm, 1e-12)) if clip_norm else 1.0


def _scale(gradients: list[Tensor], factor: float) -> None:
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)

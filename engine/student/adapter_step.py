"""An optimizer step of a student whose own weights are frozen: gradients are those of its adapter alone.

The head is frozen too, so the loss is computed in slices of the vocabulary: neither logits of a chunk of positions nor
a gradient of the head is ever whole. A model in memory and a streamed one take this same step; only the way back
through their layers differs (:meth:`engine.student.learner.Learner.backward`), so both train the same adapter. So do
several ranks, each with its share of the rows: the adapter's gradients are added up once a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from engine.machine.torch_device import exact, exact_home
from engine.student.batches import MicroBatch, StepPart
from engine.student.head import SlicedHead
from engine.student.learner import Learner
from engine.student.optimizer import AdamW
from engine.student.sliced_loss import sliced_loss
from engine.student.step import StepResult, StepSettings, finish_step


def can_be_sliced(learner: Learner) -> bool:
    """Return whether the student's head is a plain matrix; only such a head's loss can be computed in slices."""
    return isinstance(learner.head, SlicedHead)


def adapter_step(learner: Learner, parts: Iterable[StepPart], optimizer: AdamW, settings: StepSettings) -> StepResult:
    """Do one step; arguments and result as for :func:`engine.student.step.train_step`."""
    head = learner.head
    assert isinstance(head, SlicedHead), "see can_be_sliced"
    sums = torch.zeros(2, dtype=torch.float64, device=exact_home(learner.device))
    tokens = 0

    def counted() -> Iterator[StepPart]:
        nonlocal tokens
        for part in parts:
            tokens = part.num_scored  # of all ranks, also where this one has no rows
            yield part

    def gradient(part: StepPart, batch: MicroBatch, states: Tensor) -> Tensor:
        loss = sliced_loss(states, batch.labels, batch.records, head, objective=settings.objective)
        sums.add_(exact(torch.stack([loss.ce_sum, loss.kd_sum])))
        found = loss.backward(settings.loss_scale.value / max(1, part.num_scored))
        assert found is not None
        return found.to(states.dtype)

    learner.backward(counted(), gradient)
    return finish_step(learner, optimizer, sums, tokens, settings)

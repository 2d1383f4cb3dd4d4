"""A student in use: its model, device and number format, and its lm_head for the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.machine.torch_device import kind_of
from engine.models.cached import GrowingRows
from engine.models.core import head_is_linear, last_hidden_states, logits_of
from engine.models.packed import can_be_cut, packed_hidden_states
from engine.student.batches import MicroBatch, StepPart
from engine.student.generate import lengthened
from engine.student.head import Head, LinearHead
from engine.student.loss import LossSums, Objective, record_loss
from engine.student.trainable import Trainable, WholeModel


class Learner:
    """A causal language model, its weights in float32 on the device that computes.

    Args:
        model: the student.
        dtype: of the matrix products; anything but float32 is done by autocast, and the weights stay float32.
        gradient_checkpointing: recompute activations in the backward pass instead of storing them.
        trainable: which part of it is trained; all of it when not given.

    Raises:
        ModelError: the model cannot do gradient checkpointing.

    Attributes:
        model: the student.
        device: where it is.
        dtype: of the matrix products.
        head: hidden states to logits.
        tied: whether the head is the embedding.
        trainable: the part that is trained.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        dtype: torch.dtype,
        gradient_checkpointing: bool,
        trainable: Trainable | None = None,
    ) -> None:
        self.model = model
        self.trainable: Trainable = trainable or WholeModel(model)
        self.device = next(model.parameters()).device
        self.dtype = dtype
        other_dtype = None if dtype == torch.float32 else dtype
        model.config.use_cache = False
        self._checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            _enable_checkpointing(model)
        self.head: Head = self._logits
        if (matrix := head_is_linear(model)) is not None:
            self.head = LinearHead(*matrix, other_dtype)
        embedding = model.get_input_embeddings()
        self.tied = matrix is not None and isinstance(embedding, nn.Embedding) and embedding.weight is matrix[0]

    def save_memory(self, on: bool) -> str:
        """Recompute activations from the next backward pass on, or return to the initial setting.

        Returns:
            A description of the change; empty if there is none.
        """
        if self._checkpointing or not self.model.supports_gradient_checkpointing:
            return ""
        if on:
            _enable_checkpointing(self.model)
        else:
            _disable_checkpointing(self.model)
        return "activations are computed again instead of kept"

    @property
    def can_be_cut(self) -> bool:
        """Whether the model can be cut between the documents of a row."""
        return can_be_cut(self.model)

    def hidden_states(self, batch: MicroBatch) -> Tensor:
        """Last hidden states at the scored positions, [N, H]; ``batch`` is on the device."""
        with self._autocast():
            return batch.at_positions(packed_hidden_states(self.model, batch.tokens, batch.documents))

    def hidden_states_of(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Last hidden states at the scored positions of each of some micro-batches; see :attr:`at_once`."""
        return [self.hidden_states(batch) for batch in batches]

    @property
    def at_once(self) -> int:
        """Tokens that :meth:`hidden_states_of` is best given at a time; 1 is any number."""
        return 1

    def backward(self, parts: Iterable[StepPart], gradient: Callable[[StepPart, MicroBatch, Tensor], Tensor]) -> None:
        """Add the gradients of a step to the trained parameters.

        Args:
            parts: the step's micro-batches, on the CPU; with several ranks, those of this rank.
            gradient: the gradient of a micro-batch's hidden states [N, H], from these states.
        """
        for part in parts:
            if part.batch is None:
                continue
            batch = part.batch.to(self.device)
            if not part.is_last:
                self._make_gradients()
            states = self.hidden_states(batch)
            if not states.requires_grad:
                raise ModelError(
                    f"{type(self.model).__name__} computes its hidden states without gradients.",
                    "Its own code leaves out the gradients of the part that is trained here.",
                    "Choose another student, or train all weights: --lora_rank 0.",
                )
            states.backward(gradient(part, batch, states))

    def _make_gradients(self) -> None:
        """Make the gradients that several micro-batches are added to, before there are activations.

        Made in the backward pass, each would lie in the place of a freed activation, into which the next micro-batch's
        would not fit any more.
        """
        for _, parameter in self.trainable.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def loss(
        self, states: Tensor, batch: MicroBatch, *, objective: Objective, chunk_tokens: int, scale: float
    ) -> LossSums:
        """The loss at hidden states of :meth:`hidden_states`; the gradient of the head's parameters is added to theirs.

        The arguments are those of :func:`engine.student.loss.record_loss`.
        """
        return record_loss(
            states,
            batch.labels,
            batch.records,
            self.head,
            objective=objective,
            chunk_tokens=chunk_tokens,
            scale=scale,
            accumulate=True,
        )

    def looked_up_in(self) -> nn.Parameter | None:
        """The embedding's matrix if its gradient can be added row by row; None where it must be a whole matrix.

        A whole one is filled with zeros and added to that of the head, which costs two passes over the vocabulary.
        """
        embedding = self.model.get_input_embeddings()
        is_lookup = isinstance(embedding, nn.Embedding) and kind_of(embedding.weight.device).is_host
        return embedding.weight if is_lookup and embedding.weight.requires_grad else None

    def growing_rows(self) -> Callable[[Tensor], Tensor]:
        """A function from ids [rows, length] to the last token's hidden states, for rows that grow."""
        return GrowingRows(self.model, lambda ids: last_hidden_states(self.model, lengthened(ids)))

    @contextlib.contextmanager
    def sparse_embedding(self, *, with_padding: bool = False) -> Iterator[None]:
        """While this is open, a forward pass leaves an embedding whose gradient has only the rows that were read.

        Nothing happens where the embedding is not a lookup in a matrix, or the device has no sparse gradients.

        Args:
            with_padding: let the padding token's row have a gradient too. torch would search for it, and on a GPU each
                search makes the CPU wait.
        """
        embedding = self.model.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            yield
            return
        sparse, padding_row = embedding.sparse, embedding.padding_idx
        embedding.sparse = kind_of(embedding.weight.device).has_sparse
        if with_padding:
            embedding.padding_idx = None
        try:
            yield
        finally:
            embedding.sparse, embedding.padding_idx = sparse, padding_row

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without gradients and dropout; afterwards as it was."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def _logits(self, hidden_states: Tensor) -> Tensor:
        with self._autocast():
            return logits_of(self.model, hidden_states)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def _disable_checkpointing(model: PreTrainedModel) -> None:
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:  # its name before transformers 5.24
        model.gradient_checkpointing_disable()


def _enable_checkpointing(model: PreTrainedModel) -> None:
    settings = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(settings)
        else:  # its name before transformers 5.24
            model.gradient_checkpointing_enable(settings)
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} cannot compute its activations again.",
            "transformers has no gradient checkpointing for it.",
            "Leave out --gradient_checkpointing.",
        ) from error

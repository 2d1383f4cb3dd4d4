"""A teacher whose layers are all in memory, whole or quantised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.models.causal import check_causal
from engine.models.core import find_core, last_hidden_states, logits_of
from engine.models.finite import check_numbers
from engine.models.load import load_causal_lm
from engine.models.load_quantized import load_quantized
from engine.models.slices import slice_resident_head


class ResidentTeacher:
    """A teacher whose layers are all in memory.

    Args:
        folder: the model's folder.
        dtype: of weights and hidden states.
        device: where it computes.
        trust_remote_code: whether code out of the folder may run.
        quantization: hold the decoder layers' linear weights in fewer bits.

    Attributes:
        vocab_rows: columns of the logits, padding included.
        whole_waves: False: a call costs the same however few micro-batches it gets, so it is best given one at a time.
    """

    whole_waves = False

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        quantization: Literal["none", "int8", "nf4"] = "none",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self._model: PreTrainedModel | None
        if quantization == "none":
            self._model = load_causal_lm(folder, dtype=dtype, device=self.device, trust_remote_code=trust_remote_code)
            check_numbers(self._model.named_parameters(), folder)
        else:
            self._model = load_quantized(
                folder, quantization, dtype=dtype, device=self.device, trust_remote_code=trust_remote_code
            )
        self._model.requires_grad_(False)
        find_core(self._model)  # a model without layers is refused now, not after the first batch
        slice_resident_head(self._model)
        check_causal(self._model)
        self.vocab_rows = int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def model(self) -> PreTrainedModel:
        """The model itself; gone after :meth:`close`."""
        assert self._model is not None, "the teacher was closed"
        return self._model

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return find_core(self.model).layers

    @torch.no_grad()
    def last_hidden_states(
        self, micro_batches: Sequence[Tensor], *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Tensor]:
        """Hidden states of one wave.

        Args:
            micro_batches: int64 [batch, length] each, right-padded, without attention mask.
            on_progress: called with micro-batches done and micro-batches in all.

        Returns:
            [batch, length, hidden] for each micro-batch, on the teacher's device.
        """
        states = []
        for number, ids in enumerate(micro_batches, start=1):
            states.append(last_hidden_states(self.model, ids.to(self.device)))
            if on_progress is not None:
                on_progress(number, len(micro_batches))
        return states

    @torch.no_grad()
    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits of [tokens, hidden] states: float32 [tokens, vocab_rows]."""
        return logits_of(self.model, hidden_states.to(self.device)).float()

    growth_bytes = saved_bytes = 0

    def save_memory(self, on: bool) -> str:
        """Nothing of a whole teacher can go: what is done is empty."""
        return ""

    def close(self) -> None:
        """Let go of the weights."""
        self._model = None

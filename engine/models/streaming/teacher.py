"""StreamedTeacher: a model of any size, two of its layers in memory at a time.

It does what a resident teacher does, with the same result: hidden states of a wave of micro-batches, and logits of
hidden states. Memory holds two layers, the embedding rows in use, slices of the head, and one hidden state for
each token of the wave. The parts: :mod:`~engine.models.meta` builds the model without weights,
:mod:`~engine.models.weight_plan` knows which tensors make which parameters,
:mod:`~engine.models.streaming.layer_reader` reads them, :mod:`~engine.models.slices` cuts embedding and head, and
:mod:`~engine.models.streaming.wave` runs the model's own forward.

Knows nothing of text, records or caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from engine.errors import ModelError
from engine.machine.torch_device import kind_of, wait_for_compute
from engine.models.checkpoint import Checkpoint
from engine.models.core import Core, find_core, logits_of
from engine.models.memory import return_memory, trim_heap
from engine.models.meta import build_on_meta, read_config
from engine.models.quantize import Method, swap_linear_layers
from engine.models.selfcheck import Ways, check_streaming, first_layers
from engine.models.slices import can_slice_head, gather_embedding, runs, slice_head
from engine.models.streaming.head_rows import MatrixOnDisk, StreamedRows
from engine.models.streaming.hidden_store import HiddenStore
from engine.models.streaming.layer_reader import LayerReader, Weights
from engine.models.streaming.wave import run_wave
from engine.models.weight_plan import Recipe, WeightPlan, plan_weights


@dataclass(frozen=True)
class StreamingMemory:
    """Memory that a streamed model may take.

    Attributes:
        weight_bytes: most memory on the device for the weights of layers and of the head, which take turns. Below two
            layers, nothing is read ahead; head rows that do not fit are read for each call of
            :meth:`StreamedTeacher.logits`. None is enough for two layers or the whole head, whichever is larger. One
            layer is always taken.
        keeps_head: keep rows of the head beside the layers between two waves; without it they are read for each call of
            :meth:`StreamedTeacher.logits`, which takes as long where a wave comes between two calls.
        host_bytes: most main memory for head rows that do not fit on another device than the CPU; None is enough.
        hidden_bytes: most memory on the compute device for hidden states that wait; None keeps all of them there.
        spill_folder: hidden states beyond that go to a temporary file here; None moves them to main memory.
    """

    weight_bytes: int | None = None
    keeps_head: bool = True
    host_bytes: int | None = None
    hidden_bytes: int | None = None
    spill_folder: Path | None = None


class StreamedTeacher:
    """A causal language model whose decoder layers are read from disk for each wave.

    Args:
        folder: a model folder with safetensors.
        dtype: what the model computes in, whatever the files hold.
        device: where it computes.
        trust_remote_code: run the model's own code.
        quantization: hold the decoder layers' linear weights in fewer bits; they are quantised as they arrive.
        memory: that it may take.
        check: compare streaming with a plain forward on the first layers before anything else.

    Attributes:
        whole_waves: True: each call reads all layers, so it is best given all micro-batches of a wave.
        note: what cannot be promised on this processor; empty where nothing was found.

    Raises:
        ModelError: the model cannot be streamed faithfully; the message names the tensor or the module.
    """

    whole_waves = True

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        trust_remote_code: bool = False,
        quantization: Literal["none", "int8", "nf4"] = "none",
        memory: StreamingMemory | None = None,
        check: bool = True,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._checkpoint = Checkpoint(folder)
        self._config = read_config(folder, trust_remote_code=trust_remote_code)
        _refuse_quantized(folder, self._config)
        self.model = build_on_meta(self._config, dtype=dtype, trust_remote_code=trust_remote_code)
        self._core = find_core(self.model)
        self._plan = plan_weights(self.model, self._checkpoint, dtype)
        self._memory = memory or StreamingMemory()
        self._store = HiddenStore(limit_bytes=self._memory.hidden_bytes, folder=self._memory.spill_folder)
        self._head_bytes: int | None = None

        groups, resident = _group(self._plan, self._core.layers_prefix, len(self._core.layers))
        shrink = None if quantization == "none" else self._quantizer(quantization)
        self._reader = LayerReader(self.model, self._checkpoint, self._plan, groups, device=device, shrink=shrink)
        weight_bytes = self._memory.weight_bytes
        self._reader.prefetch = weight_bytes is None or 2 * self._reader.slot_bytes <= weight_bytes
        self._may_read_ahead = self._reader.prefetch
        self._head_rows: StreamedRows | None = None
        cut = self._cut_embedding() | self._cut_head()
        self._load_resident([recipe for recipe in resident if not cut.intersection(recipe.targets)], cut)
        _move_buffers(self.model, device)
        self.note = self._check() if check else ""

    @property
    def vocab_rows(self) -> int:
        """Columns of the logits: rows of the output embedding, padding rows included."""
        head = self.model.get_output_embeddings()
        return int(head.weight.shape[0]) if head is not None else int(self._config.get_text_config().vocab_size)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers; without weights but for the one at work."""
        return self._core.layers

    @property
    def core(self) -> Core:
        """The core and its layers."""
        return self._core

    @property
    def store(self) -> HiddenStore:
        """Keeps the hidden states of waiting micro-batches."""
        return self._store

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._core.layers)

    @property
    def prefetch(self) -> bool:
        """Whether the next layer is read while this one computes; off takes the memory of one layer less."""
        return self._reader.prefetch

    @prefetch.setter
    def prefetch(self, on: bool) -> None:
        self._reader.prefetch = on

    @property
    def growth_bytes(self) -> int:
        """Main memory that the next wave will take beyond what is held now: the layers' slots, until they are there."""
        missing = sum(not slot.is_held for slot in self._reader.host_slots)
        return missing * self._reader.slot_bytes + (self._head_beyond_slots if missing else 0)

    @property
    def saved_bytes(self) -> int:
        """Main memory that is taken again when :meth:`save_memory` is turned off."""
        is_host = kind_of(self.device).is_host  # elsewhere the second slot is not main memory
        ahead = self._reader.ahead_bytes if is_host and self._may_read_ahead and not self.prefetch else 0
        return ahead + self._head_beyond_slots

    @property
    def _head_beyond_slots(self) -> int:
        """Main memory for rows of the head that do not fit beside the layers."""
        if self._head_rows is None:
            return 0
        size = self.model.get_output_embeddings().weight.numel() * self.dtype.itemsize
        if not kind_of(self.device).is_host:
            room = len(self._reader.slots) * self._reader.slot_bytes
            kept = size if self._head_bytes is None else min(size, room + self._head_bytes)
            most = self._memory.host_bytes
            return max(0, size - kept if most is None else min(size - kept, most))
        beyond = max(0, size - len(self._reader.slots) * self._reader.slot_bytes)
        return beyond if self._memory.keeps_head else 0

    def save_memory(self, on: bool) -> str:
        """Do with less main memory from here on, at any time, with the same result; or no longer.

        On the CPU one slot instead of two, rows of the head that are read for each call instead of kept, and waiting
        hidden states in the spill file. On another device only the rows that are kept in main memory: its own memory
        is not what is short.

        Returns:
            The measures taken, in words; empty when there are none.
        """
        if not kind_of(self.device).is_host:
            if self._head_rows is None or not self._head_beyond_slots:
                return ""
            self._head_rows.keep_less(on)
            return "the output matrix is read from disk for each chunk"
        self.prefetch = self._may_read_ahead and not on
        if self._head_rows is not None:
            self._head_rows.keep_less(on)
        spills = self._memory.spill_folder is not None and self._memory.hidden_bytes != 0
        if spills:
            self._store.limit_bytes = 0 if on else self._memory.hidden_bytes
        return "layers are no longer read ahead" + (", and hidden states wait on disk" if spills else "")

    @property
    def moved_bytes(self) -> int:
        """Hidden states moved out of the compute device's memory so far, in bytes."""
        return self._store.moved_bytes

    def last_hidden_states(
        self, micro_batches: Sequence[Tensor], *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Tensor]:
        """Run one wave.

        Args:
            micro_batches: token ids, int64 [batch, length] each, padded on the right; there is no attention mask,
                because a causal model's real positions do not see what is on their right.
            on_progress: called with (done, total) steps; a step is one micro-batch through one layer. An exception in
                it ends the wave and leaves the teacher usable.

        Returns:
            For each micro-batch what the model's head would get: [batch, length, hidden], on the device.
        """
        if self._head_rows is not None:
            self._head_rows.forget()
        return self._run(self._core.layers, micro_batches, on_progress)

    def _run(
        self,
        layers: nn.ModuleList,
        micro_batches: Sequence[Tensor],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Tensor]:
        done, total = 0, len(micro_batches) * len(layers)

        def on_step() -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done, total)

        try:
            return run_wave(
                self._core.core,
                layers,
                [ids.to(self.device) for ids in micro_batches],
                self.arrivals(range(len(layers))),
                store=self._store,
                on_step=on_step,
            )
        finally:
            self._store.close()
            trim_heap()  # not garbage collection: 0.2 s with all that transformers imports

    def logits(self, hidden_states: Tensor) -> Tensor:
        """The model's own head on hidden states [C, hidden]: float32 [C, vocab_rows].

        The first call after a wave reads the head; calls with more hidden states read it less often where it does not
        fit into memory.
        """
        with torch.no_grad():
            return logits_of(self.model, hidden_states.to(self.device)).float()

    def head_matrix(self) -> MatrixOnDisk | None:
        """The head's weight, read from the disk where it is needed; None where the files do not hold it as it is."""
        head = self.model.get_output_embeddings()
        recipe = self._plain_recipe(head)
        if recipe is None or not isinstance(head, nn.Linear):
            return None
        return self._matrix(recipe, head.weight, self.dtype)

    def _matrix(self, recipe: Recipe, weight: Tensor, dtype: torch.dtype) -> MatrixOnDisk:
        rows, columns = weight.shape
        return MatrixOnDisk(self._checkpoint, recipe.sources[0], shape=(rows, columns), dtype=dtype, device=self.device)

    def forget_head(self) -> None:
        """Leave the memory of the head's rows to the layers."""
        if self._head_rows is not None:
            self._head_rows.forget()

    @contextmanager
    def resident(self, count: int) -> Iterator[None]:
        """While this is open, the first layers are in memory."""
        names = [name for index in range(count) for name in self._fill(self._reader.layer(index))]
        try:
            yield
        finally:
            self._vacate(names)

    def close(self) -> None:
        """Give back memory and files."""
        self._reader.release()
        if self._head_rows is not None:
            self._head_rows.forget()
        self._store.close()
        self._checkpoint.close()
        return_memory()

    def arrivals(self, order: Sequence[int]) -> Iterator[int]:
        """Read layers in this order; each index is yielded when the layer's weights are in place, until the next."""
        for index, weights in self._reader.layers(order):
            names = self._fill(weights)
            del weights
            yield index
            if not kind_of(self.device).is_host:
                # Python is ahead of the GPU: a layer that is let go before its last kernel has run keeps its memory
                # until then, and with the two that come there would be three.
                wait_for_compute(self.device)
            self._vacate(names)
            # The micro-batches' hidden states, freed and made again for each layer, leave holes in the heap that grow
            # by 5 MB a layer at 2,048 tokens of width 1,024.
            trim_heap()

    def _fill(self, weights: Weights) -> list[str]:
        for name, tensor in weights.items():
            _place(self.model, name, tensor)
        return list(weights)

    def _vacate(self, names: Sequence[str]) -> None:
        for name in names:  # on meta again, not gone: whatever still used it would fail loudly
            _place(self.model, name, torch.empty_like(self.model.get_parameter_or_buffer(name), device="meta"))

    def _check(self) -> str:
        def run_streamed(micro_batches: Sequence[Tensor], count: int) -> list[Tensor]:
            with first_layers(self._core, count) as layers:
                hidden_states = self._run(layers, micro_batches)
            self._reader.release()  # the other way loads its layers into memory of their own
            return hidden_states

        loaded: dict[int, list[str]] = {}

        def load_layer(index: int) -> None:
            loaded[index] = self._fill(self._reader.layer(index))

        ways = Ways(run_streamed, load_layer, lambda index: self._vacate(loaded.pop(index)))
        note = check_streaming(self.model, self._core, self.dtype, ways)
        return_memory()
        return note

    def _quantizer(self, method: Method) -> Callable[[Weights], Weights]:
        """Swap the layers' linear modules; what turns an arrived layer's weights into what these hold."""
        prefix = self._core.layers_prefix
        swapped = {f"{prefix}.{name}": module for name, module in swap_linear_layers(self._core.layers, method).items()}

        def shrink(weights: Weights) -> Weights:
            small: Weights = {}
            for name, tensor in weights.items():
                path = name.removesuffix(".weight")
                if name.endswith(".weight") and path in swapped:
                    small[f"{path}.codes"], small[f"{path}.scales"] = swapped[path].pack(tensor)
                else:
                    small[name] = tensor.clone()  # out of the slot
            return small

        return shrink

    def _cut_embedding(self) -> set[str]:
        """Let the embedding read its rows from the checkpoint; the names that need no loading then."""
        embedding = self.model.get_input_embeddings()
        recipe = self._plain_recipe(embedding)
        if recipe is None or not isinstance(embedding, nn.Embedding):
            return set()
        columns, dtype, device = embedding.weight.shape[1], embedding.weight.dtype, self.device

        def read_rows(ids: Tensor) -> Tensor:
            ids = ids.cpu()
            rows = torch.empty((len(ids), columns), dtype=dtype)
            for place, first, count in runs(ids):
                self._checkpoint.read(recipe.sources[0], rows[place : place + count], first=first * columns)
            return rows.to(device)

        gather_embedding(embedding, read_rows, self._core.core)
        return {_weight_name(self.model, embedding)}

    def _cut_head(self) -> set[str]:
        """Let the head read its rows from the checkpoint; the names that need no loading then."""
        head = self.model.get_output_embeddings()
        recipe = self._plain_recipe(head)
        if recipe is None or not can_slice_head(head):
            return set()
        weight_bytes = self._memory.weight_bytes
        slot_bytes = len(self._reader.slots) * self._reader.slot_bytes
        self._head_bytes = None if weight_bytes is None else max(0, weight_bytes - slot_bytes)
        if not self._memory.keeps_head:
            self._head_bytes = 0
        self._head_rows = StreamedRows(
            self._matrix(recipe, head.weight, head.weight.dtype),
            slots=lambda: self._reader.slots,
            keep_bytes=self._head_bytes,
            host_bytes=self._memory.host_bytes,
        )
        slice_head(head, self._head_rows, device=self.device)
        return {_weight_name(self.model, head)}

    def _plain_recipe(self, module: nn.Module | None) -> Recipe | None:
        """The recipe of a module's weight, if it is one tensor of the checkpoint, unchanged."""
        if module is None:
            return None
        name = _weight_name(self.model, module)
        recipe = self._plan.recipes.get(self._plan.tied.get(name, name))
        return recipe if recipe is not None and recipe.converter is None else None

    def _load_resident(self, recipes: Sequence[Recipe], cut: set[str]) -> None:
        weights = self._reader.read(recipes)
        for name, tensor in weights.items():
            _place(self.model, name, tensor)
        for name, source in self._plan.tied.items():
            if name in cut:
                continue
            if source in weights:
                _place(self.model, name, weights[source])
            else:  # its other half is read in slices, so that it needs a copy of its own
                _place(self.model, name, self._reader.read([self._plan.recipes[source]])[source])


def _group(plan: WeightPlan, prefix: str, num_layers: int) -> tuple[list[list[Recipe]], list[Recipe]]:
    """Recipes of each layer, and those that stay in memory: what is in no layer, or shared by several."""
    shared = {name for pair in plan.tied.items() for name in pair}
    groups: list[list[Recipe]] = [[] for _ in range(num_layers)]
    resident = []
    for recipe in {id(recipe): recipe for recipe in plan.recipes.values()}.values():
        homes = {_layer_of(name, prefix) for name in recipe.targets}
        home = homes.pop()
        if homes or home is None or shared.intersection(recipe.targets):
            resident.append(recipe)
        else:
            groups[home].append(recipe)
    return groups, resident


def _layer_of(name: str, prefix: str) -> int | None:
    stem = prefix.rstrip(".") + "."
    if not name.startswith(stem):
        return None
    return int(name.removeprefix(stem).split(".", 1)[0])


def _weight_name(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, candidate in model.named_modules() if candidate is module) + ".weight"


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where a parameter or persistent buffer is."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type != "meta":
                module._buffers[name] = buffer.to(device)


def _refuse_quantized(folder: Path, config: PretrainedConfig) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method", "") if isinstance(quantization, dict) else ""
        raise ModelError(
            f"The weights in {folder} are already quantised ({method or 'see quantization_config in config.json'}).",
            "Decoding them needs code that streaming does not run.",
            "Leave out --layer_by_layer, or use the model's unquantised weights.",
        )

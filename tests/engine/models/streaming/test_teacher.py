from __future__ import annotations

from contextlib import closing

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from engine.machine.products import use_products
from engine.models.core import last_hidden_states, logits_of
from engine.models.slices import ResidentRows, slice_head
from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory
from tests.engine.models.architectures import ARCHITECTURES, NEWER, VOCAB_SIZE, tiny_architecture
from tests.engine.models.equality import assert_same_numbers

CPU = torch.device("cpu")


def batches() -> list[tuple[Tensor, Tensor]]:
    """Three micro-batches (ids, real positions) of several lengths, padded on the right; longer than any window."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for lengths in ([20, 13], [9, 17, 3], [21]):
        ids = torch.randint(3, VOCAB_SIZE, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        made.append((ids.masked_fill(~mask, 1), mask))
    return made


@pytest.mark.parametrize("name", [*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in NEWER)])
def test_streamed_equals_resident_to_the_last_bit(name: str) -> None:
    if (ARCHITECTURES | NEWER)[name][0] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    folder = tiny_architecture(name)
    teacher = StreamedTeacher(folder, dtype=torch.float32, device=CPU)
    # Frozen, as the teacher that is held as a whole is: for weights that ask for gradients PyTorch takes other kernels
    # on some processors, under no_grad too, and those round otherwise (seen with Mamba on AVX-512 BF16).
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    # Weights that are mapped from a file lie where its header ends. On AVX-512 BF16 a product of few rows rounds by
    # where its weights lie (seen with qwen2_moe and dbrx, 4e-7), and streamed weights lie at multiples of 64 bytes.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    use_products(model)
    found = teacher.last_hidden_states([ids for ids, _ in batches()])
    with torch.no_grad():
        for (ids, mask), hidden_states in zip(batches(), found, strict=True):
            assert_same_numbers(hidden_states[mask], last_hidden_states(model, ids)[mask], what="hidden states")
            # The usual forward, with an attention mask, takes other kernels: equal but for rounding.
            usual = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask].float()
            assert_same_numbers(
                teacher.logits(hidden_states[mask]), usual, tolerance=1e-5 * usual.abs().max().item(), what="logits"
            )
        head = model.get_output_embeddings()
        slice_head(head, ResidentRows(head.weight), device=CPU)
        hidden_states = found[0][batches()[0][1]]
        assert_same_numbers(teacher.logits(hidden_states), logits_of(model, hidden_states), what="sliced logits")
    teacher.close()


def test_a_head_that_is_not_kept_takes_no_memory_beside_the_layers_and_gives_the_same() -> None:
    folder = tiny_architecture("llama", vocab_size=6_000)
    ids = torch.arange(12)[None]
    found = {}
    for keeps in (True, False):
        memory = StreamingMemory(keeps_head=keeps)
        with closing(
            StreamedTeacher(folder, dtype=torch.float32, device=torch.device("cpu"), memory=memory)
        ) as teacher:
            states = teacher.last_hidden_states([ids])[0][0]
            found[keeps] = teacher.logits(states)
            head = teacher._head_rows
            assert head is not None
            assert (head._limit.taken > 0) == keeps
            assert (teacher.saved_bytes > 0) == keeps
    assert torch.equal(found[True], found[False])

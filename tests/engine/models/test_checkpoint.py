from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from engine.errors import ModelError
from engine.models.checkpoint import Checkpoint
from engine.models.core import last_hidden_states
from engine.models.streaming.teacher import StreamedTeacher
from tests.engine.models.architectures import VOCAB_SIZE, tiny_architecture
from tests.engine.models.equality import assert_same_numbers

CPU = torch.device("cpu")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (1,), (), (0, 4), (129, 517)])
def test_a_tensor_is_read_as_torch_would_convert_it(
    stored: torch.dtype, wanted: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(stored)
    save_file({"before": torch.zeros(3), "tensor": tensor}, tmp_path / "model.safetensors")
    out = torch.empty(shape, dtype=wanted)
    Checkpoint(tmp_path).read("tensor", out)
    assert torch.equal(out, tensor.to(wanted))


def test_rows_out_of_the_middle_are_those_rows(tmp_path: Path) -> None:
    tensor = torch.randn(50, 7)
    save_file({"tensor": tensor}, tmp_path / "model.safetensors")
    out = torch.empty(4, 7)
    Checkpoint(tmp_path).read("tensor", out, first=13 * 7)
    assert torch.equal(out, tensor[13:17])


def test_a_file_that_was_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"tensor": torch.randn(1000)}, path)
    checkpoint = Checkpoint(tmp_path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 100)
    with pytest.raises(ModelError, match="shorter than its header says"):
        checkpoint.read("tensor", torch.empty(1000))


def test_a_tensor_of_a_format_that_needs_code_is_refused(tmp_path: Path) -> None:
    save_file({"scale": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"Tensor scale .* is stored as F8_E4M3"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama_tied", "gpt_neox", "mixtral", "gpt2"])
def test_a_sharded_bf16_model_streams_as_it_is_in_memory(name: str, dtype: torch.dtype) -> None:
    folder = tiny_architecture(name, dtype="bfloat16", shard_bytes=20_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    ids = torch.randint(0, VOCAB_SIZE, (2, 19), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    teacher = StreamedTeacher(folder, dtype=dtype, device=CPU)
    with torch.no_grad():
        ours, theirs = teacher.last_hidden_states([ids])[0], last_hidden_states(model, ids)
        assert ours.dtype == dtype
        assert_same_numbers(ours, theirs)
        logits = teacher.logits(ours[0])
        assert logits.dtype == torch.float32
        assert_same_numbers(logits, model(ids).logits[0].float(), tolerance=1e-5 if dtype == torch.float32 else 0.05)
    teacher.close()

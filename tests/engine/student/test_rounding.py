"""Small changes of a training are kept by the format that the weights are written in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.model_files.spec import read_spec
from engine.models.load import load_causal_lm
from engine.student.export import export_student
from engine.student.rounding import rounded
from tests.pretend_gpu import pretend_gpu
from tests.tiny import tiny_model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_below_a_formats_last_digit_are_not_lost(dtype: torch.dtype) -> None:
    """Rounded to the nearest they vanish, and with them a third of what a short training had learned."""
    base = (0.05 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))).to(dtype).float()
    change = 0.05 * base.abs() * torch.finfo(dtype).eps * torch.where(base > 0, 1.0, -1.0)
    nearest = (base + change).to(dtype).float() - base
    assert not nearest.any(), "each change is too small for the nearest value to be another one"
    draws = torch.Generator().manual_seed(1)
    kept = rounded(base + change, dtype, draws).float() - base
    assert (kept @ change) == pytest.approx(float(change @ change), rel=0.05)
    assert torch.equal(rounded(base.clone(), dtype, draws).float(), base), "what the format holds keeps its bits"
    most = torch.finfo(dtype).max
    assert rounded(torch.tensor([most, -most, 0.0]), dtype, draws).tolist() == [most, -most, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_weights_on_a_gpu_are_rounded_as_on_the_cpu(kind: str, dtype: torch.dtype) -> None:
    """Apple's GPUs have no float64, which the smallest numbers are rounded in."""
    values = torch.tensor([1.3, -1e-6, 2.0**-20, 0.0])
    expected = rounded(values.clone(), dtype, torch.Generator().manual_seed(1))
    with pretend_gpu(kind):
        found = rounded(values.clone().to(f"{kind}:0"), dtype, torch.Generator().manual_seed(1)).cpu()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2.0**-30, 2.0**-25, 2.0**-20, 2.0**-14, 1e-3, 1.0])
def test_the_mean_of_what_is_written_is_the_value(dtype: torch.dtype, size: float) -> None:
    """Also below float16's smallest normal number, 2**-14, and below its smallest one, 2**-24."""
    values = size * torch.tensor([1.3, -1.3]).repeat_interleave(200_000)
    found = rounded(values.clone(), dtype, torch.Generator().manual_seed(1)).double()
    step = max(2.0**-24, size * torch.finfo(dtype).eps) if dtype == torch.float16 else size * torch.finfo(dtype).eps
    assert ((found - values).abs() <= 2 * step).all()
    for half in found.view(2, -1).abs():
        assert abs(float(half.mean()) - 1.3 * size) < 0.01 * step


@torch.no_grad()
def test_a_student_of_all_weights_keeps_its_small_changes_and_what_did_not_change(tmp_path: Path) -> None:
    source = tiny_model("llama", dtype="bfloat16")
    model = load_causal_lm(source, dtype=torch.float32)
    name = "model.embed_tokens.weight"
    base = model.model.embed_tokens.weight.clone()
    change = base.abs() * torch.finfo(torch.bfloat16).eps * 0.05
    model.model.embed_tokens.weight += change
    export_student(model, read_spec(source), tmp_path / "student", "card")
    written, before = load_file(tmp_path / "student" / "model.safetensors"), load_file(source / "model.safetensors")
    moved = written[name].float() - base
    assert (moved * change).sum() == pytest.approx(float((change * change).sum()), rel=0.2)
    assert all(torch.equal(written[other], before[other]) for other in before if other != name)

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engine.channel.channel import Channel
from engine.errors import DiskFull
from engine.model_files.adapter_shape import AdapterShape
from engine.model_files.spec import read_spec
from engine.models.linears import decoder_linears
from engine.models.load import load_causal_lm
from engine.models.quantize import QuantizedLinear
from engine.student.adapter import LowRankAdapter, add_product
from engine.student.export import export_student
from engine.student.learner import Learner
from engine.student.train import Progress, resume, train
from tests.engine.student.small_run import SmallRun
from tests.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_model

SHAPE = AdapterShape(4, 8.0)
IDS = torch.arange(26).view(2, 13) * 7 % VOCAB_SIZE


def adapted(model: PreTrainedModel, shape: AdapterShape = SHAPE, *, trained: bool = True) -> LowRankAdapter:
    adapter = LowRankAdapter(model, shape, device=torch.device("cpu"), seed=1)
    if trained:
        with torch.no_grad():
            for number, tensor in enumerate(adapter.tensors().values()):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    return adapter


def load(architecture: str = "llama") -> PreTrainedModel:
    return load_causal_lm(tiny_model(architecture, num_layers=2), dtype=torch.float32)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_the_adapter_off_or_untrained_the_model_is_its_base_to_the_last_bit(architecture: str) -> None:
    base = logits(load(architecture))
    model = load(architecture)
    adapter = adapted(model, trained=False)
    assert torch.equal(logits(model), base), "B is zero at first"
    adapter = adapted(load(architecture))
    model = load(architecture)
    adapter = adapted(model)
    assert not torch.allclose(logits(model), base)
    with adapter.off():
        assert torch.equal(logits(model), base)
    assert not torch.allclose(logits(model), base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_changes_a_layer_as_its_product_would_change_the_weight(architecture: str) -> None:
    model = load(architecture)
    adapter = adapted(model)
    assert len(adapter.linears) == len(decoder_linears(model)) > 4
    ours = logits(model)
    plain = load(architecture)
    with torch.no_grad():
        for linear in adapter.linears:
            a, b = adapter.pair(linear.name)
            change = 8.0 / 4 * b @ a
            plain.get_submodule(linear.name).weight += change.T if architecture == "gpt2" else change
    torch.testing.assert_close(ours, logits(plain), rtol=1e-3, atol=1e-4)


class _Sizes(TorchDispatchMode):
    """Counts the tensors of one shape that operations make."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.numel() == self.elements:
            self.places.add(found.untyped_storage().data_ptr())
        return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "int8"])
def test_an_adapted_layer_has_one_output_in_memory(kind: str, bias: bool) -> None:
    layer: nn.Module = Conv1D(24, 8) if kind == "conv1d" else nn.Linear(8, 24, bias=bias)
    layer.requires_grad_(False)
    if kind == "int8":
        assert isinstance(layer, nn.Linear)
        layer, plain = QuantizedLinear(layer, "int8"), layer
        layer.codes, layer.scales = layer.pack(plain.weight)
    a, b = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(24, 4))
    inputs = torch.randn(2, 5, 8, requires_grad=True)
    expected = layer(inputs) + 0.5 * inputs @ a.T @ b.T
    with _Sizes(2 * 5 * 24) as sizes:
        output = layer(inputs)
        add_product(output, inputs @ a.T, b, 0.5)
    assert len(sizes.places) == 1
    torch.testing.assert_close(output, expected)
    weight = torch.randn(2, 5, 24)
    ours = torch.autograd.grad((output * weight).sum(), (inputs, a, b))
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weight).sum(), (inputs, a, b)))


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_and_moments_are_made_before_activations(run: SmallRun, micro_batches: int) -> None:
    learner = run.learner(adapter=SHAPE)
    training = run.training(learner, gradient_accumulation=micro_batches)
    seen: list[tuple[bool, int]] = []

    def look(*_: Any) -> None:
        given = [parameter.grad is not None for _, parameter in learner.trainable.parameters()]
        assert all(given) == any(given)
        seen.append((all(given), len(training.optimizer.state())))

    learner.model.get_input_embeddings().register_forward_hook(lambda *_: look() if learner.model.training else None)
    train(training, Progress(), run.checkpoints(run.events()), Channel(run.events()))
    moments = 2 * len(learner.trainable.tensors())
    assert {count for _, count in seen} == {moments}
    assert {given for given, _ in seen} == {micro_batches > 1}


def test_gradients_are_those_that_the_whole_weights_would_have(run: SmallRun) -> None:
    learner = run.learner(adapter=SHAPE)
    adapter = learner.trainable
    assert isinstance(adapter, LowRankAdapter)
    batch, _ = run.source.micro_batch("train", range(2))
    for model in (learner.model, whole := run.learner().model):
        states = Learner(model, dtype=torch.float32, gradient_checkpointing=False).hidden_states(batch)
        states.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in adapter.parameters()}
    for linear in adapter.linears:
        a, b = adapter.pair(linear.name)
        dense = whole.get_submodule(linear.name).weight.grad
        torch.testing.assert_close(gradients[f"{linear.name}.lora_B.weight"], 2.0 * dense @ a.T, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(gradients[f"{linear.name}.lora_A.weight"], 2.0 * b.T @ dense, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in learner.model.parameters()), "the base is frozen"


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("self_attn.o_proj",), ("model.layers.1.mlp.down_proj",)])
def test_only_the_named_layers_are_adapted(targets: tuple[str, ...]) -> None:
    model = load()
    adapter = adapted(model, AdapterShape(2, 4.0, targets))
    assert {linear.name for linear in adapter.linears} == {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name.endswith(target) for target in targets)
    }


def train_to_the_end(run: SmallRun, learner: Learner, **changes: Any) -> Progress:
    training = run.training(learner, learning_rate=2e-2, **changes)
    progress = Progress()
    train(training, progress, run.checkpoints(run.events(), keep=9), Channel(run.events()))
    return progress


@pytest.mark.parametrize("changes", [{}, {"bits": 8, "lean": True, "gradient_accumulation": 1}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_moves_the_adapter_alone_and_a_checkpoint_holds_nothing_else(
    run: SmallRun, checkpointing: bool, changes: dict[str, Any]
) -> None:
    learner = run.learner(adapter=SHAPE, gradient_checkpointing=checkpointing)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    first = {name: tensor.clone() for name, tensor in learner.trainable.tensors().items()}
    train_to_the_end(run, learner, **changes)
    torch.testing.assert_close(dict(learner.model.state_dict()), before, rtol=0, atol=0)
    assert all(not torch.equal(tensor, first[name]) for name, tensor in learner.trainable.tensors().items())
    (newest, *_) = sorted((run.folder / "checkpoints").glob("step-*"), reverse=True)
    assert load_file(newest / "weights.safetensors").keys() == first.keys()
    owners = {name.rpartition("/")[0] for name in load_file(newest / "optimizer.safetensors")}
    assert owners == first.keys()


def test_a_stopped_training_continues_to_the_same_bits(run: SmallRun) -> None:
    learner = run.learner(adapter=SHAPE)
    train_to_the_end(run, learner, checkpoint_every=1)
    expected = {name: tensor.clone() for name, tensor in learner.trainable.tensors().items()}
    for entry in (run.folder / "checkpoints").glob("step-0000000[456]"):
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()
    fresh = run.learner(adapter=SHAPE)
    training = run.training(fresh, learning_rate=2e-2, checkpoint_every=1)
    checkpoints = run.checkpoints(run.events(), keep=9)
    progress = resume(training, checkpoints, Channel(run.events()))
    assert progress is not None
    assert progress.step < 6
    train(training, progress, checkpoints, Channel(run.events()))
    torch.testing.assert_close(fresh.trainable.tensors(), expected, rtol=0, atol=0)


# peft 0.21 asks transformers 5.24 by a name that it has deprecated (is_gradient_checkpointing).
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_written_folders_are_the_trained_student(architecture: str, dtype: str, tmp_path: Path) -> None:
    """peft loads the adapter onto the base, and transformers the merged student; untied heads and tied ones."""
    from peft import PeftModel

    source = tiny_model(architecture, num_layers=2, dtype=dtype)
    model = load_causal_lm(source, dtype=torch.float32)
    adapter = adapted(model)
    ours, base = logits(model), logits(load_causal_lm(source, dtype=torch.float32))
    folder = tmp_path / "student"
    export_student(model, read_spec(source), folder, "card", adapter=adapter, base="base")
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, folder / "adapter")
    torch.testing.assert_close(logits(loaded), ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, base, atol=0.05)
    merged = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    close = 1e-3 if dtype == "float32" else 0.03
    assert (merged - ours).norm() < close * ours.norm()
    assert (merged - ours).norm() < 0.1 * (ours - base).norm()
    kept = {name: tensor.dtype for name, tensor in load_file(folder / "model.safetensors").items()}
    assert kept == {name: tensor.dtype for name, tensor in load_file(source / "model.safetensors").items()}
    config = (folder / "adapter" / "adapter_config.json").read_text()
    assert str(tmp_path) not in config


def test_a_disk_that_is_full_while_the_student_is_written_is_told(tmp_path: Path) -> None:
    """A real disk of 160 KiB, for root on Linux; on a larger one the same student is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        source, model = read_spec(tiny_model("llama", num_layers=2)), load()
        how: dict[str, Any] = {"adapter": adapted(model), "base": "base"}
        with pytest.raises(DiskFull, match="There was no room to write the student"):
            export_student(model, source, disk / "student", "card", **how)
        assert not list(disk.iterdir())
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        export_student(model, source, disk / "student", "card", **how)
        assert torch.allclose(logits(load_causal_lm(disk / "student", dtype=torch.float32)), logits(model), atol=1e-4)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)

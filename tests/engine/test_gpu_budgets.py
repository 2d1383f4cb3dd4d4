"""How often a GPU is launched and waited for, counted on a pretend one: each launch costs microseconds, each wait more.

The counts do not depend on the machine. The limit for a step or a chunk is asserted; its real cost is printed where a
limit is broken, by line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.student.batches import StepPart
from engine.student.lean_step import RunningNorms, lean_step
from engine.student.step import StepSettings, train_step
from engine.student.train import Training
from engine.teacher.head import Scored, records_from_hidden
from tests.engine.student.small_run import SmallRun, make_run
from tests.pretend_gpu import Counts, pretend_gpu
from tests.tiny import tiny_model


@pytest.mark.parametrize(("positions", "vocab_size"), [(64, 5_120), pytest.param(667, 50_304, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_chunk_of_the_teachers_head(positions: int, vocab_size: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(positions, 32, generator=generator), torch.randn(vocab_size, 32, generator=generator)
    with pretend_gpu() as gpu:
        device = torch.device("cuda:0")
        weight = weight.to(device)
        scored = Scored(
            states.to(device),
            torch.zeros(positions, dtype=torch.int64, device=device),
            torch.rand(positions, generator=generator, dtype=torch.float64).to(device),
        )
        for _ in range(2):  # the second chunk: the first one makes constants that are kept
            gpu.clear()
            records_from_hidden(
                [scored],
                lambda hidden: hidden @ weight.T,
                vocab_size=vocab_size,
                record_size=12,
                temperature=temperature,
                chunk_tokens=positions,
            )
    assert gpu.launches.total() <= 100, gpu.told()
    assert gpu.syncs.total() <= 3, gpu.told()


def counted(run: SmallRun, student: Path, step: Any, **settings: Any) -> Counts:
    """The second step of a training on the pretend GPU: the first one makes the moments."""
    with pretend_gpu() as gpu:
        training = run.training(run.learner(student, device="cuda:0"), gradient_accumulation=1, **settings)
        training.learner.model.train()
        norms = RunningNorms(1.0, {})
        for index in range(2):
            gpu.clear()
            parts = []
            for group in training.order.micro_batches(index):
                batch, _ = training.source.micro_batch("train", group)
                parts.append(StepPart(batch, len(batch.labels), True))
            result = step(training, parts, norms)
            assert result.applied
            norms = RunningNorms(1.0, norms._norms)
    return gpu


def plain(training: Training, parts: list[StepPart], _norms: RunningNorms) -> Any:
    return train_step(
        training.learner,
        parts,
        training.optimizer,
        StepSettings(training.objective, learning_rate=1e-3, clip_norm=1.0, chunk_tokens=64),
    )


def lean(training: Training, parts: list[StepPart], norms: RunningNorms) -> Any:
    settings = StepSettings(training.objective, learning_rate=1e-3, clip_norm=0.0, chunk_tokens=64)
    return lean_step(training.learner, parts, training.optimizer, settings, norms)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("run"))


FAMILIES = ["llama", pytest.param("qwen2", marks=pytest.mark.slow), pytest.param("gpt_neox", marks=pytest.mark.slow)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [32, 8])
def test_a_plain_step(run: SmallRun, family: str, bits: int) -> None:
    student = tiny_model(family, num_layers=2, seed=5, hidden_size=64)
    gpu = counted(run, student, plain, bits=bits)
    assert gpu.syncs.total() <= 2, gpu.told()


@pytest.mark.parametrize("family", ["llama", "qwen2", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_a_lean_step(run: SmallRun, family: str) -> None:
    student = tiny_model(family, num_layers=2, seed=5, hidden_size=64)
    gpu = counted(run, student, lean, bits=8)
    assert gpu.syncs.total() <= 5, gpu.told()


@pytest.mark.parametrize("bits", [32, 8])
def test_a_lean_step_whose_moments_are_in_main_memory(run: SmallRun, bits: int) -> None:
    """Each piece of moments comes in one copy that nothing waits for, and goes in one that is waited for."""
    student = tiny_model("llama", num_layers=2, seed=5, hidden_size=64)
    gpu = counted(run, student, lean, bits=bits, offload=True)
    pieces = len(run.learner(student).model.state_dict())
    # Beside these: what a lean step waits for anyway, and the numbers of the embedding's rows, for reading and writing.
    assert gpu.syncs.total() <= 5 + pieces + 2, gpu.told()


@pytest.mark.parametrize(("bits", "most"), [(32, 10), (8, 100)])
def test_a_plain_step_launches_few_kernels_for_the_update(run: SmallRun, bits: int, most: int) -> None:
    """AdamW's is one kernel for many tensors, not one for each; 8-bit moments are unpacked and packed together."""
    launches = [
        counted(run, tiny_model("llama", num_layers=layers, seed=5, hidden_size=64), plain, bits=bits).launches
        for layers in (1, 2)
    ]
    lines = ("student/optimizer", "student/eight_bit")
    for_each = [sum(n for line, n in found.items() if line.startswith(lines)) for found in launches]
    assert for_each[0] == for_each[1] <= most, launches


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("step", [plain, lean])
def test_a_student_on_a_gpu_is_that_of_a_cpu(run: SmallRun, step: Any, offload: bool) -> None:
    """Matrices whose moments are unpacked together, and those that travel, are changed as one by one."""
    weights = []
    for device in ("cpu", "cuda:0"):
        with pretend_gpu():
            learner = run.learner(tiny_model("llama", num_layers=2, seed=5, hidden_size=64), device=device)
            training = run.training(learner, gradient_accumulation=1, bits=8, offload=offload)
            training.learner.model.train()
            norms = RunningNorms(1.0, {})
            for index in range(3):
                (group,) = training.order.micro_batches(index)
                batch, _ = training.source.micro_batch("train", group)
                step(training, [StepPart(batch, len(batch.labels), True)], norms)
                norms = RunningNorms(1.0, norms._norms)
            weights.append({name: tensor.cpu() for name, tensor in learner.model.state_dict().items()})
    for name, here in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], here, rtol=1e-5, atol=1e-6, msg=lambda told, name=name: f"{name}: {told}"
        )

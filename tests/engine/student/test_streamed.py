from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.channel.channel import Channel
from engine.errors import ModelError
from engine.machine import products
from engine.model_files.spec import read_spec
from engine.models.load import load_causal_lm
from engine.student.adapter import LowRankAdapter
from engine.student.batches import StepPart
from engine.student.evaluate import HoldoutBatches, evaluate
from engine.student.learner import Learner
from engine.student.loss import RecordTensors
from engine.student.sliced_loss import sliced_loss
from engine.student.train import Progress, train
from tests.engine.models.architectures import VOCAB_SIZE, tiny_architecture
from tests.engine.student.frozen import CPU, SHAPE, Method, resident, streamed
from tests.engine.student.small_run import SmallRun, make_run
from tests.tiny import tiny_model


def trained(run: SmallRun, learner: Learner, name: str) -> tuple[dict[str, Tensor], Any]:
    training = run.training(learner, learning_rate=2e-2, steps=3, gradient_accumulation=3)
    events = run.events()
    train(training, Progress(), run.checkpoints(events), Channel(events))
    metrics = evaluate(learner, HoldoutBatches(run.source, 2), vocab_size=320, temperature=1.0, chunk_tokens=16)
    for entry in (run.folder / "checkpoints").glob("step-*"):
        entry.rename(entry.with_name(f"{name}-{entry.name}"))
    return {name: tensor.clone() for name, tensor in learner.trainable.tensors().items()}, metrics


@pytest.mark.parametrize(
    ("architecture", "dtype", "method"),
    [
        ("llama", torch.float32, "none"),
        ("llama", torch.float32, "nf4"),
        ("llama", torch.bfloat16, "int8"),
        ("qwen2", torch.bfloat16, "none"),
        ("gpt_neox", torch.float32, "none"),
        ("gpt2", torch.float32, "int8"),
    ],
)
def test_a_streamed_base_trains_the_adapter_of_a_resident_one_bit_for_bit(
    architecture: str, dtype: torch.dtype, method: Method, run: SmallRun
) -> None:
    folder = tiny_model(architecture, num_layers=3, hidden_size=64)
    first = LowRankAdapter(load_causal_lm(folder, dtype=dtype), SHAPE, device=CPU, seed=3).tensors()
    ours, metrics = trained(run, streamed(folder, dtype, method), "streamed")
    theirs, expected = trained(run, resident(folder, dtype, method), "resident")
    assert all(not torch.equal(tensor, first[name]) for name, tensor in ours.items()), "every adapter has learned"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    close = 1e-5 if dtype == torch.float32 else 1e-2  # the head's logits are made in slices of other sizes
    assert metrics.holdout_loss == pytest.approx(expected.holdout_loss, rel=close)
    assert metrics.kl_to_teacher == pytest.approx(expected.kl_to_teacher, rel=close)


def test_documents_of_a_row_do_not_see_each_other(tmp_path: Path) -> None:
    """Packed rows: masks are those of the micro-batch that is at work, on the way forward and on the way back."""
    folder = tiny_model("llama", num_layers=2)
    learners = [streamed(folder, torch.float32, "none"), resident(folder, torch.float32, "none")]
    run = make_run(tmp_path / "run")
    batches = []
    for number in range(2):
        batch, _ = run.source.micro_batch("train", range(2 * number, 2 * number + 2))
        documents = (torch.arange(batch.tokens.shape[1]) >= 7 + 5 * number).long().expand_as(batch.tokens)
        batches.append(replace(batch, documents=documents))
    parts = [StepPart(batch, sum(len(each.labels) for each in batches), False) for batch in batches]
    found = []
    for learner in learners:
        with torch.no_grad():
            for name, parameter in learner.trainable.parameters():
                if name.endswith("B.weight"):
                    parameter.add_(0.1)
        learner.backward(parts, lambda part, batch, states: states.detach().cos())
        found.append({name: parameter.grad for name, parameter in learner.trainable.parameters()})
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    plain = streamed(folder, torch.float32, "none")
    plain.backward(
        [StepPart(replace(b, documents=None), 1, False) for b in batches], lambda *given: given[2].detach().cos()
    )
    others = {name: parameter.grad for name, parameter in plain.trainable.parameters()}
    assert any(
        not torch.allclose(others[name], gradient) for name, gradient in found[0].items() if gradient is not None
    )


@pytest.mark.slow
def test_gradients_of_layers_of_more_than_200_mb_are_those_of_the_model_in_memory(tmp_path: Path) -> None:
    """A layer of this size is read into slots and freed while others are computed."""
    large = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 3, "initializer_range": 0.01}
    folder = tiny_architecture("llama", **large)
    assert 4 * max(read_spec(folder).layer_parameters) > 200 * 10**6
    run = make_run(tmp_path / "run")
    batches = [run.source.micro_batch("train", range(2 * number, 2 * number + 2))[0] for number in range(2)]
    batches = [replace(batch, tokens=batch.tokens % VOCAB_SIZE) for batch in batches]
    found = []
    for make in (streamed, resident):
        learner = make(folder, torch.float32, "none")
        with torch.no_grad():
            for name, parameter in learner.trainable.parameters():
                if name.endswith("B.weight"):
                    parameter.add_(0.01)
        learner.backward([StepPart(batch, 1, False) for batch in batches], lambda *given: given[2].detach().cos())
        found.append({name: parameter.grad for name, parameter in learner.trainable.parameters()})
        del learner
    assert all(bool(gradient.abs().max() > 0) for gradient in found[0].values() if gradient is not None)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_head_that_is_more_than_a_matrix_product_is_refused() -> None:
    with pytest.raises(ModelError, match="more than a matrix product") as told:
        streamed(tiny_model("gemma2", num_layers=2), torch.float32, "none")
    assert "--student_layer_by_layer" in told.value.todo


@pytest.mark.parametrize("by_onednn", [False, True])
def test_a_wide_head_is_a_matrix_product_with_any_kernel(monkeypatch: pytest.MonkeyPatch, by_onednn: bool) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: by_onednn)
    wide = tiny_architecture("llama", hidden_size=2048, intermediate_size=64, num_hidden_layers=1)
    assert streamed(wide, torch.float32, "none").head.columns == 2048


def test_tokens_that_are_not_scored_teach_nothing(run: SmallRun) -> None:
    """Tokens after a row's last scored position, and labels elsewhere, change no gradient."""
    batch, _ = run.source.micro_batch("train", range(2))
    length = batch.tokens.shape[1]
    keep = batch.positions % length < 10
    records = RecordTensors(*(getattr(batch.records, field.name)[keep] for field in fields(batch.records)))
    short = replace(batch, positions=batch.positions[keep], labels=batch.labels[keep], records=records)
    other = short.tokens.clone()
    other[:, 12:] = 5
    gradients = []
    for tokens in (short.tokens, other):
        learner = resident(tiny_model("llama", num_layers=2), torch.float32, "none")
        head = learner.head

        def gradient(part: StepPart, batch: Any, states: Tensor, head: Any = head) -> Tensor:
            found = sliced_loss(states, batch.labels, batch.records, head, objective=run.objective).backward(1.0)
            assert found is not None
            return found

        learner.backward([StepPart(replace(short, tokens=tokens), len(short.labels), True)], gradient)
        gradients.append({name: parameter.grad for name, parameter in learner.trainable.parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)

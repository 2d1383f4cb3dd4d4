"""The chunked loss against full logits in float64, written from the definitions and not from our formulas."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from engine.machine.device import CPU
from engine.student import head as student_head
from engine.student.head import LinearHead
from engine.student.loss import LossSums, Objective, RecordTensors, record_loss

TARGETS = ("unbiased", "topk", "ghost", "blend")


def make_records(
    generator: torch.Generator, positions: int, vocab_size: int, k: int, *, dtype: torch.dtype = torch.float64
) -> RecordTensors:
    """Records as the teacher leaves them: heads exact and first, tails of equal weight; 0 to k heads."""
    k = min(k, vocab_size)
    probs = (3 * torch.randn(positions, vocab_size, generator=generator, dtype=torch.float64)).softmax(dim=1)
    ids = probs.argsort(dim=1, descending=True)[:, :k].clone()
    if k == vocab_size:
        num_head = torch.full((positions,), k)
    else:
        num_head = torch.randint(0, k + 1, (positions,), generator=generator)
        num_head = torch.where(num_head == k, torch.tensor(max(k - 1, 0)), num_head)
    is_head = torch.arange(k) < num_head[:, None]
    head_probs = torch.where(is_head, probs.gather(1, ids), 0)
    tail_mass = (1 - head_probs.sum(dim=1)).clamp(min=0) * (k < vocab_size)
    tail = tail_mass / (k - num_head).clamp(min=1)
    weights = torch.where(is_head, head_probs, tail[:, None])
    entropy = torch.special.entr(probs).sum(dim=1)
    return RecordTensors(ids, weights.to(dtype), num_head, tail_mass.to(dtype), entropy.to(dtype))


def reference(
    hidden_states: Tensor,
    labels: Tensor,
    records: RecordTensors,
    logits_of: nn.Module,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor]:
    """Position by position, over whole distributions, by plain autograd."""
    size, temperature = objective.vocab_size, objective.temperature
    ce_sum = kd_sum = hidden_states.new_zeros(())
    for n in range(len(labels)):
        logits = logits_of(hidden_states[n : n + 1])[0, :size]
        ce_sum = ce_sum - logits.log_softmax(0)[labels[n]]
        student = (logits / temperature).softmax(0)
        count = int(records.num_head[n])
        head = records.ids[n, :count]
        weights = records.weights[n].to(student.dtype)
        if objective.target == "unbiased":
            kd = -sum(w * student[i].log() for w, i in zip(weights, records.ids[n], strict=True)) - records.entropy[n]
        elif objective.target == "topk":
            kept_ids, kept = (head, weights[:count]) if count else (records.ids[n], weights)
            kept = kept / kept.sum()
            kd = sum(p * (p / student[i]).log() for p, i in zip(kept, kept_ids, strict=True) if p > 0)
        elif objective.target == "blend":
            whole = torch.zeros_like(student)
            whole[head] = weights[:count]
            whole[labels[n]] += 1 - weights[:count].sum()
            at = whole.nonzero()[:, 0]
            kd = (whole[at] * (whole[at] / student[at]).log()).sum()
        else:
            rest = records.tail_mass[n]
            others = torch.ones(size, dtype=torch.bool)
            others[head] = False
            kd = sum((p * (p / student[i]).log() for p, i in zip(weights[:count], head, strict=True)), 0 * student[0])
            if rest > 0:
                kd = kd + rest * (rest / student[others].sum()).log()
        kd_sum = kd_sum + kd
    loss = objective.kd_weight * temperature**2 * kd_sum + (1 - objective.kd_weight) * ce_sum
    return loss, ce_sum, kd_sum


class SoftCapped(nn.Module):
    """A head that is no plain matrix: scaled, biased, capped."""

    def __init__(self, hidden: int, vocab: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, vocab)
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden_states) * self.scale / 5.0) * 5.0


def linear(module: nn.Linear, dtype: torch.dtype | None = None) -> LinearHead:
    return LinearHead(module.weight, module.bias, dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp(min=1e-30))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.4])
@pytest.mark.parametrize("kd_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["linear", "bias", "function"])
def test_values_and_gradients_are_those_of_full_logits(
    target: str, temperature: float, kd_weight: float, kind: str, generator: torch.Generator
) -> None:
    positions, hidden, vocab_size, rows = 7, 5, 19, 23  # four rows of padding
    torch.manual_seed(0)
    module: nn.Module = SoftCapped(hidden, rows) if kind == "function" else nn.Linear(hidden, rows, bias=kind == "bias")
    module = module.double()
    records = make_records(generator, positions, vocab_size, 6)
    labels = torch.randint(0, vocab_size, (positions,), generator=generator)
    objective = Objective(vocab_size, target, kd_weight, temperature)  # type: ignore[arg-type]
    states = torch.randn(positions, hidden, generator=generator, dtype=torch.float64).requires_grad_()
    parameters = [*module.parameters()]

    expected, *expected_parts = reference(states, labels, records, module, objective)
    expected_gradients = torch.autograd.grad(expected, [states, *parameters])
    head = module if kind == "function" else linear(module)  # type: ignore[arg-type]
    sums = record_loss(states, labels, records, head, objective=objective, chunk_tokens=3)
    gradients = torch.autograd.grad(sums.loss, [states, *parameters])

    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close((sums.ce_sum, sums.kd_sum), tuple(expected_parts))
    torch.testing.assert_close(gradients, expected_gradients)
    if kind != "function":
        assert not gradients[1][vocab_size:].any(), "padding rows of the head have a gradient"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(target: str, temperature: float, generator: torch.Generator) -> None:
    weight = torch.randn(11, 4, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(11, generator=generator, dtype=torch.float64).requires_grad_()
    states = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    records = make_records(generator, 5, 9, 4)
    labels = torch.randint(0, 9, (5,), generator=generator)
    objective = Objective(9, target, 0.6, temperature)  # type: ignore[arg-type]

    def loss(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = LinearHead(weight, bias)
        return record_loss(states, labels, records, head, objective=objective, chunk_tokens=2).loss

    assert torch.autograd.gradcheck(loss, (states, weight, bias))


@pytest.mark.parametrize("kind", ["linear", "function"])
def test_every_chunk_size_gives_what_the_whole_gives(kind: str, generator: torch.Generator) -> None:
    positions, vocab_size = 123, 507
    torch.manual_seed(1)
    module = (SoftCapped(9, 512) if kind == "function" else nn.Linear(9, 512)).double()
    states = torch.randn(positions, 9, generator=generator, dtype=torch.float64).requires_grad_()
    records = make_records(generator, positions, vocab_size, 12)
    labels = torch.randint(0, vocab_size, (positions,), generator=generator)

    def run(chunk_tokens: int) -> tuple[Tensor, ...]:
        head = module if kind == "function" else linear(module)  # type: ignore[arg-type]
        objective = Objective(vocab_size, "ghost", 0.5, 2.0)
        sums = record_loss(states, labels, records, head, objective=objective, chunk_tokens=chunk_tokens)
        return (sums.loss, *torch.autograd.grad(sums.loss, [states, *module.parameters()]))

    whole = run(positions)
    for chunk_tokens in (1, 2, 7, 64, 122, 1000):
        torch.testing.assert_close(run(chunk_tokens), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_float32_is_no_worse_than_naive_float32(target: str, temperature: float, generator: torch.Generator) -> None:
    positions, hidden, vocab_size = 123, 32, 5070  # several column blocks
    weight = torch.randn(vocab_size, hidden, generator=generator) * 0.4
    states = torch.randn(positions, hidden, generator=generator) * 2
    records = make_records(generator, positions, vocab_size, 12, dtype=torch.float32)
    labels = torch.randint(0, vocab_size, (positions,), generator=generator)
    objective = Objective(vocab_size, target, 0.7, temperature)  # type: ignore[arg-type]

    def naive(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cast_states = states.to(dtype).requires_grad_()
        module = nn.Linear(hidden, vocab_size, bias=False).to(dtype)
        module.weight.data = weight.to(dtype)
        loss, *_ = reference(cast_states, labels, records, module, objective)
        return loss.detach(), torch.autograd.grad(loss, cast_states)[0]

    exact_loss, exact_gradient = naive(torch.float64)
    naive_loss, naive_gradient = naive(torch.float32)
    ours = states.clone().requires_grad_()
    loss = record_loss(ours, labels, records, LinearHead(weight), objective=objective, chunk_tokens=50).loss
    (gradient,) = torch.autograd.grad(loss, ours)
    assert relative_error(loss, exact_loss) <= relative_error(naive_loss, exact_loss) + 1e-6
    assert relative_error(gradient, exact_gradient) <= relative_error(naive_gradient, exact_gradient) + 1e-6


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("k", [1, 19])
@pytest.mark.parametrize("positions", [1, 5])
def test_smallest_and_largest_records_are_finite_and_right(
    target: str, k: int, positions: int, generator: torch.Generator
) -> None:
    module = nn.Linear(4, 19, bias=False).double()
    states = torch.randn(positions, 4, generator=generator, dtype=torch.float64).requires_grad_()
    records = make_records(generator, positions, 19, k)
    labels = torch.randint(0, 19, (positions,), generator=generator)
    objective = Objective(19, target, 0.9, 1.0)  # type: ignore[arg-type]
    expected, *_ = reference(states, labels, records, module, objective)
    sums = record_loss(states, labels, records, linear(module), objective=objective, chunk_tokens=64)
    torch.testing.assert_close(sums.loss, expected, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(sums.loss, states)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, states)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["linear", "function"])
def test_no_scored_position_at_all_gives_zero(target: str, kind: str, generator: torch.Generator) -> None:
    module = nn.Linear(4, 19)
    states = torch.randn(0, 4).requires_grad_()
    records = make_records(generator, 0, 19, 5, dtype=torch.float32)
    head = module if kind == "function" else linear(module)
    sums = record_loss(
        states, torch.zeros(0, dtype=torch.int64), records, head, objective=Objective(19, target), chunk_tokens=8
    )  # type: ignore[arg-type]
    sums.loss.backward()  # type: ignore[no-untyped-call]
    assert sums.loss.item() == 0
    assert states.grad is not None
    assert module.weight.grad is None or not module.weight.grad.any()


def test_certain_student_keeps_ghost_finite(generator: torch.Generator) -> None:
    # The student puts everything on the head: in float32 its rest rounds to 0, or below.
    weight = torch.eye(6) * 200
    states = torch.eye(6)[:3].clone().requires_grad_()
    records = make_records(generator, 3, 6, 3, dtype=torch.float32)
    sums = record_loss(
        states, torch.tensor([0, 1, 2]), records, LinearHead(weight), objective=Objective(6, "ghost"), chunk_tokens=2
    )
    sums.loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(sums.loss.item())
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_student_equal_to_its_teacher_has_no_kd_and_no_gradient() -> None:
    logits = torch.randn(4, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    probs = (logits / 2).softmax(1)
    ids = probs.argsort(1, descending=True)
    records = RecordTensors(
        ids, probs.gather(1, ids), torch.full((4,), 19), torch.zeros(4).double(), torch.special.entr(probs).sum(1)
    )
    states = logits.clone().requires_grad_()
    for target in TARGETS:
        sums = record_loss(
            states,
            torch.zeros(4, dtype=torch.int64),
            records,
            LinearHead(torch.eye(19).double()),
            objective=Objective(19, target, 1.0, 2.0),  # type: ignore[arg-type]
            chunk_tokens=4,
        )
        (gradient,) = torch.autograd.grad(sums.loss, states)
        assert abs(sums.kd_sum.item()) < 1e-12
        assert gradient.abs().max() < 1e-12


def test_the_blend_of_a_record_without_a_head_is_the_labels_cross_entropy(generator: torch.Generator) -> None:
    records = make_records(generator, 6, 19, 5)
    records = dataclasses.replace(records, num_head=torch.zeros_like(records.num_head))
    labels = torch.randint(0, 19, (6,), generator=generator)
    states = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    head = LinearHead(torch.randn(19, 4, generator=generator, dtype=torch.float64))
    sums = record_loss(states, labels, records, head, objective=Objective(19, "blend"), chunk_tokens=6)
    torch.testing.assert_close(sums.kd_sum, sums.ce_sum)


def test_the_blend_has_the_head_and_all_the_rest_on_the_label_which_may_be_a_head(generator: torch.Generator) -> None:
    records = make_records(generator, 40, 19, 5)
    for labels in (records.ids[:, 0], records.ids[:, -1], torch.randint(0, 19, (40,), generator=generator)):
        read = records.rest_to_label(labels)
        whole = torch.zeros(40, 19, dtype=torch.float64).scatter_add_(1, read.ids, read.weights)
        expected = torch.zeros(40, 19, dtype=torch.float64)
        for n in range(40):
            count = int(records.num_head[n])
            expected[n, records.ids[n, :count]] = records.weights[n, :count]
            expected[n, labels[n]] += 1 - records.weights[n, :count].sum()
        torch.testing.assert_close(whole, expected)
        torch.testing.assert_close(whole.sum(1), torch.ones(40, dtype=torch.float64))
        torch.testing.assert_close(read.entropy, torch.special.entr(expected).sum(1))


@pytest.mark.parametrize("kind", ["linear", "function"])
def test_accumulating_gives_the_gradients_of_the_backward_pass(kind: str, generator: torch.Generator) -> None:
    records = make_records(generator, 8, 19, 5)
    labels = torch.randint(0, 19, (8,), generator=generator)
    states = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(2)
    module = (SoftCapped(4, 19) if kind == "function" else nn.Linear(4, 19)).double()

    def gradients(accumulate: bool, splits: list[slice]) -> list[Tensor]:
        module.zero_grad()
        leaf = states.clone().requires_grad_()
        head = module if kind == "function" else linear(module)  # type: ignore[arg-type]
        for split in splits:
            sums = record_loss(
                leaf[split],
                labels[split],
                records.at(split),
                head,
                objective=Objective(19, "unbiased", 0.7, 1.0),
                chunk_tokens=3,
                scale=1 / 8,
                accumulate=accumulate,
            )
            sums.loss.backward()  # type: ignore[no-untyped-call]
        return [leaf.grad, *(parameter.grad for parameter in module.parameters())]  # type: ignore[list-item]

    kept = gradients(False, [slice(0, 8)])
    for splits in ([slice(0, 8)], [slice(0, 3), slice(3, 4), slice(4, 8)]):
        torch.testing.assert_close(gradients(True, splits), kept)


def test_without_gradients_only_the_sums_are_made(generator: torch.Generator) -> None:
    module = nn.Linear(4, 19)
    states = torch.randn(6, 4, requires_grad=True)
    records = make_records(generator, 6, 19, 5, dtype=torch.float32)
    labels = torch.randint(0, 19, (6,), generator=generator)

    def run() -> LossSums:
        return record_loss(states, labels, records, linear(module), objective=Objective(19), chunk_tokens=4)

    with torch.no_grad():
        quiet = run()
    assert not quiet.loss.requires_grad
    torch.testing.assert_close(quiet.loss, run().loss.detach())


@pytest.mark.parametrize("kind", ["linear", "function"])
def test_half_precision_head_is_near(kind: str, generator: torch.Generator) -> None:
    module = nn.Linear(16, 40)
    states = torch.randn(20, 16, generator=generator).requires_grad_()
    records = make_records(generator, 20, 33, 5, dtype=torch.float32)
    labels = torch.randint(0, 33, (20,), generator=generator)

    def run(dtype: torch.dtype | None) -> tuple[Tensor, ...]:
        if kind == "linear":
            head = linear(module, dtype)
        else:

            def head(chunk: Tensor) -> Tensor:  # type: ignore[misc]
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
                    return module(chunk)

        sums = record_loss(states, labels, records, head, objective=Objective(33), chunk_tokens=8)
        return (sums.loss, *torch.autograd.grad(sums.loss, [states, module.weight, module.bias]))

    for found, expected in zip(run(torch.bfloat16), run(None), strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found, expected.double()) < 0.02


class _LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the elements of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_no_tensor_is_larger_than_one_chunk_of_logits_and_it_is_made_once(
    temperature: float, generator: torch.Generator
) -> None:
    positions, vocab_size, chunk = 64, 6000, 8
    weight = torch.randn(vocab_size, 4, generator=generator).requires_grad_()
    states = torch.randn(positions, 4, generator=generator).requires_grad_()
    records = make_records(generator, positions, vocab_size, 5, dtype=torch.float32)
    labels = torch.randint(0, vocab_size, (positions,), generator=generator)
    objective = Objective(vocab_size, "unbiased", 0.7, temperature)
    pointers = set()

    class Watch(_LargestTensor):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = super().__torch_dispatch__(func, types, args, kwargs)
            if isinstance(out, Tensor) and out.untyped_storage().nbytes() >= 4 * chunk * 4096:
                pointers.add((out.untyped_storage().nbytes(), out.untyped_storage().data_ptr()))
            return out

    with Watch() as watch:
        sums = record_loss(states, labels, records, LinearHead(weight), objective=objective, chunk_tokens=chunk)
        sums.loss.backward()  # type: ignore[no-untyped-call]
    assert max(watch.sizes) == chunk * vocab_size
    whole_chunks = {pointer for size, pointer in pointers if size == 4 * chunk * vocab_size}
    assert len(whole_chunks) == 1, "more than one [chunk, vocabulary] matrix was made"


@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_records_with_labels_are_a_mixture_of_the_teacher_and_the_label(k: int, share: float) -> None:
    generator = torch.Generator().manual_seed(k)
    records = make_records(generator, 40, 20, k)
    labels = torch.randint(0, 20, (40,), generator=generator)
    at = torch.rand(40, generator=generator) < 0.5
    mixed = records.with_labels(labels, at, share)
    for n in range(40):
        if not at[n]:
            for field in dataclasses.fields(records):
                assert torch.equal(getattr(mixed, field.name)[n], getattr(records, field.name)[n])
            continue
        before, after = ({}, {})
        for found, source in ((before, records), (after, mixed)):
            for number, weight in zip(source.ids[n].tolist(), source.weights[n].tolist(), strict=True):
                found[number] = found.get(number, 0.0) + weight
        label = int(labels[n])
        if label not in before:  # the label takes the last one's place
            before.pop(int(records.ids[n, -1]))
        kept = sum(before.values())
        wanted = {number: (1 - share) * weight / kept for number, weight in before.items()} if kept else {}
        wanted[label] = wanted.get(label, 0.0) + (share if kept else 1.0)
        assert after.keys() == wanted.keys()
        assert all(math.isclose(after[number], wanted[number], abs_tol=1e-9) for number in after)
        assert math.isclose(float(mixed.entropy[n]), -sum(w * math.log(w) for w in after.values() if w), abs_tol=1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_learns_the_label_where_records_have_it(target: str) -> None:
    generator = torch.Generator().manual_seed(3)
    records = make_records(generator, 8, 20, 4)
    labels = torch.randint(0, 20, (8,), generator=generator)
    whole = records.with_labels(labels, torch.ones(8, dtype=torch.bool), 1.0)
    hidden = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    head = nn.Linear(16, 20, bias=False, dtype=torch.float64)
    objective = Objective(20, target, 1.0, 1.0)  # type: ignore[arg-type]
    found = record_loss(hidden, labels, whole, head, objective=objective, chunk_tokens=3)
    assert math.isclose(float(found.kd_sum), float(found.ce_sum), rel_tol=1e-6)


@pytest.mark.parametrize("positions", [1, 7, 64])
@pytest.mark.parametrize("room", [0, 3, 10, 1000])  # positions that may wait
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_half_precision_gradients_are_right_however_many_chunks_wait(
    positions: int, room: int, bias: bool, accumulate: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab_size, rows, chunk = 9000, 9003, 4  # more than one slice of the head's rows, and padding
    monkeypatch.setattr(student_head.Device, "of", lambda _: replace(CPU, waiting_bytes=2 * vocab_size * room))
    torch.manual_seed(0)
    module = nn.Linear(8, rows, bias=bias)
    states = torch.randn(positions, 8, generator=generator)
    records = make_records(generator, positions, vocab_size, 5, dtype=torch.float32)
    labels = torch.randint(0, vocab_size, (positions,), generator=generator)
    objective = Objective(vocab_size, "unbiased", 0.7, 1.0)

    def gradients(dtype: torch.dtype | None) -> list[Tensor]:
        module.zero_grad()
        given = states.clone().requires_grad_()
        record_loss(
            given,
            labels,
            records,
            linear(module, dtype),
            objective=objective,
            chunk_tokens=chunk,
            scale=1 / positions,
            accumulate=accumulate,
        ).loss.backward()  # type: ignore[no-untyped-call]
        found = [given.grad, *(parameter.grad for parameter in module.parameters())]
        assert all(gradient is not None for gradient in found)
        return [gradient for gradient in found if gradient is not None]

    for found, expected in zip(gradients(torch.bfloat16), gradients(None), strict=True):
        assert relative_error(found, expected) < 0.02
        assert not found[vocab_size:].any()

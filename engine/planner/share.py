"""Share of this machine's matrix product rate that a phase achieved."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engine.errors import TinyDistillError
from engine.machine import hardware
from engine.model_files.spec import ModelSpec, read_spec
from engine.planner.measure import MachineRates, kept_at, machine_rates
from engine.planner.shape import ModelShape, shape_of
from engine.planner.timing import forward_flops_per_token
from engine.settings.config import RunConfig

# Keys of configurations whose layers use some of their parameters for a token: how many is known to the model alone.
_SLOW = 1e-9  # tokens a second: below any machine's rate
_MOST_SHARE = 1.05  # the probe has noise of its own
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def gemm_shares(
    settings: RunConfig,
    student: Path,
    tokens_per_second: dict[str, float | None],
    rates: MachineRates | None = None,
) -> dict[str, float | None]:
    """Share of the measured rate of matrix products in the run's number format, for "teacher" and "student".

    It is tokens a second times operations a token over operations a second: 2 operations for each parameter and token
    in a forward pass, 6 in training (4 of a student whose own weights are frozen), 2 more where activations are
    computed again. Source: Kaplan et al. 2020,
    https://arxiv.org/abs/2001.08361, section 2.1; the share is the "model FLOPs utilization" of Chowdhery et al. 2022,
    https://arxiv.org/abs/2204.02311, appendix B, but for the activations that are computed again.

    Args:
        settings: the run's.
        student: folder of the student.
        tokens_per_second: of each phase, without what is done beside the tokens.
        rates: of this machine; those that are kept when not given.

    Returns:
        None for a phase without tokens, for a mixture of experts, where this machine was not measured, and where the
        phase was faster than the measured rate.
    """
    if rates is None:
        rates = machine_rates(device=settings.device or "cpu", threads=settings.threads)
    training = 2 if settings.lora_rank else 3  # frozen weights have no gradient
    is_again = settings.gradient_checkpointing or settings.student_layer_by_layer
    passes = {"teacher": 1, "student": training + bool(is_again)}
    found: dict[str, float | None] = {}
    for phase, folder in (("teacher", str(settings.teacher)), ("student", str(student))):
        rate, shape = tokens_per_second.get(phase), _shape(folder, settings)
        if not rate or shape is None or not rates.measured:
            found[phase] = None
            continue
        flops = passes[phase] * forward_flops_per_token(shape, settings.sequence_length or 1)
        share = rate * flops / rates.flops_per_second(settings.precision or "fp32")
        # A phase cannot be faster than the machine: its rate was measured while other programs took part of it.
        found[phase] = share if share <= _MOST_SHARE else None
    return found


def full_rate(settings: RunConfig, student: Path) -> float | None:
    """Tokens a second at which the training would do nothing but matrix products, at this machine's measured rate.

    Args:
        settings: the run's.
        student: folder of the student, or of what it begins as.

    Returns:
        None where :func:`gemm_shares` has none.
    """
    share = gemm_shares(settings, student, {"student": _SLOW})["student"]
    return _SLOW / share if share else None


def forget_slow_rates(settings: RunConfig, student: Path, tokens_per_second: dict[str, float | None]) -> None:
    """Delete stored rates that a phase has exceeded, so that the next plan measures this machine again."""
    device = settings.device or "cpu"
    rates = machine_rates(device=device, threads=settings.threads)
    ideal = {name: rate for name, rate in tokens_per_second.items() if rate}
    told = gemm_shares(settings, student, tokens_per_second, rates)
    slow = gemm_shares(settings, student, dict.fromkeys(ideal, _SLOW), rates)
    if any(told[name] is None and slow[name] is not None for name in ideal):
        with contextlib.suppress(OSError):
            kept_at(device, settings.threads or hardware.usable_cores()).unlink(missing_ok=True)


def _shape(folder: str, settings: RunConfig) -> ModelShape | None:
    try:
        spec = read_spec(folder, trust_remote_code=settings.trust_remote_code)
    except TinyDistillError:  # it was moved since
        return None
    return None if _has_experts(spec) else shape_of(spec)


def _has_experts(spec: ModelSpec) -> bool:
    configurations = [spec.config, *(value for value in spec.config.values() if isinstance(value, dict))]
    return any(part.get(key) for part in configurations for key in _EXPERTS)

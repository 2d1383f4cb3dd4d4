"""Choice of the number format of matrix products, from measurements of this machine."""

from __future__ import annotations

from engine.errors import Problem, SettingsError
from engine.machine.hardware import Gpu, Hardware
from engine.planner.budget import Budget
from engine.planner.measure import MachineRates
from engine.planner.models import Models
from engine.planner.timing import pass_seconds_per_token
from engine.settings.config import RunConfig

# Half precision costs digits of the teacher's distribution: its products must be clearly faster, and so must a token of
# teacher and student together. Between the products numbers are converted, which is all that narrow models do.
_WORTH_IT = 1.5
# Tokens and row length of the passes that are compared.
_MICRO_BATCH, _LENGTH = 1024, 128
# If no other format fits it may be this much slower.
_BEARABLE = 0.5


def smaller_precision(
    config: RunConfig, precision: str, budget: Budget, hardware: Hardware, rates: MachineRates
) -> str | None:
    """Return the number format to try if this one does not fit; None if all others are very slow here."""
    if config.precision is not None or precision != "fp32" or not rates.measured:
        return None
    for half in _halves(budget, hardware):
        if rates.flops_per_second(half) >= _BEARABLE * rates.flops_per_second("fp32"):
            return half
    return None


def precision_for(
    config: RunConfig, budget: Budget, hardware: Hardware, rates: MachineRates, models: Models
) -> tuple[str, str]:
    """Return the number format of the matrix products, and a reason with the rates.

    Raises:
        SettingsError: fp16 was requested without a GPU.
    """
    if config.precision == "fp16" and budget.where.is_host:
        raise SettingsError([Problem("precision", "fp16", "is for GPUs; on the CPU use fp32 or bf16")])
    if config.precision is not None:
        return config.precision, ""
    if not budget.where.is_host:
        return _for_gpu(budget, hardware, rates)
    if not rates.measured:
        return "fp32", "nothing was measured on this machine yet, and bf16 may be very slow without support for it"
    figures = _products_of("bf16", "here", rates)
    if rates.gemm_flops.get("bf16_large", 0.0) <= _WORTH_IT * rates.flops_per_second("fp32"):
        return "fp32", figures
    ratio = _seconds_per_token(models, "bf16", rates) / _seconds_per_token(models, "fp32", rates)
    figures += f"; with the other operations of a layer, these models take {ratio:.2f} of the time in bf16"
    if ratio * _WORTH_IT > 1:
        return "fp32", f"{figures}: not worth its rounding"
    return "bf16", f"{figures}: worth its rounding"


def _products_of(half: str, where: str, rates: MachineRates) -> str:
    fast, fp32 = rates.flops_per_second(half), rates.flops_per_second("fp32")
    return f"{half} does {fast / 1e9:,.0f} GFLOP/s {where}, fp32 {fp32 / 1e9:,.0f}"


def _seconds_per_token(models: Models, precision: str, rates: MachineRates) -> float:
    """Seconds of the teacher's pass and of the three passes of a training step."""
    scored = pass_seconds_per_token(models.teacher_shape, _MICRO_BATCH, _LENGTH, precision, rates, "forward")
    learned = pass_seconds_per_token(models.student_shape, _MICRO_BATCH, _LENGTH, precision, rates, "learn")
    return scored + 3 * learned


def _halves(budget: Budget, hardware: Hardware) -> tuple[str, ...]:
    """Half-precision formats to consider, the better one first.

    bf16 has float32's range and is taken where the device multiplies it fast. NVIDIA's GPUs before capability 8.0 have
    no fast bf16; fp16 overflows above 65,504, so that it is taken only where its products were tried.
    """
    if budget.where.is_host:
        return ("bf16",)
    gpu = _gpu(budget, hardware)
    if gpu.capability and _major(gpu) < 8:
        return ("fp16",) if "fp16" in gpu.good_formats else ()
    tried_well = gpu.good_formats or ("bf16",)
    return tuple(name for name in budget.where.formats if name in tried_well)


def _for_gpu(budget: Budget, hardware: Hardware, rates: MachineRates) -> tuple[str, str]:
    gpu = _gpu(budget, hardware)
    which = f"the {gpu.name} (capability {gpu.capability})" if gpu.capability else f"the {gpu.name}"
    halves = _halves(budget, hardware)
    if halves and halves[0] == "bf16" and gpu.capability:
        return "bf16", f"{which} multiplies bf16 several times faster than fp32"
    if gpu.good_formats and "bf16" not in gpu.good_formats and _major(gpu) >= 8:
        return "fp32", f"products in bf16 came out wrong or failed on {which} when they were tried"
    if not halves:
        return "fp32", f"{which} has no fast bf16"
    if not rates.measured:
        return "fp32", f"nothing was measured on {which} yet"
    half = halves[0]
    figures = _products_of(half, f"on {which}", rates)
    if rates.flops_per_second(half) <= _WORTH_IT * rates.flops_per_second("fp32"):
        return "fp32", figures
    return half, figures + ("; should a model overflow in it, fp32 is used instead" if half == "fp16" else "")


def _gpu(budget: Budget, hardware: Hardware) -> Gpu:
    return next(gpu for gpu in hardware.gpus if gpu.device == budget.device)


def _major(gpu: Gpu) -> int:
    return int(gpu.capability.partition(".")[0] or 0)

"""The number format of matrix products, from what was measured on this machine."""

from __future__ import annotations

from engine.config import RunConfig
from engine.errors import Problem, SettingsError
from engine.hardware import Hardware
from engine.planner.budget import Budget
from engine.planner.measure import MachineRates
from engine.planner.models import Models

# Half precision costs digits in the teacher's distribution: it has to be worth it.
_WORTH_IT = 1.5
# Where nothing else fits it may be this much slower.
_BEARABLE = 0.5
# Below this width a layer is over before the conversion has paid off.
_SMALLEST_WIDTH = 384


def smaller_precision(config: RunConfig, precision: str, rates: MachineRates) -> str | None:
    """The number format to try when this one does not fit; None where there is none that is not very slow here."""
    if config.precision is not None or precision != "fp32" or not rates.measured:
        return None
    return "bf16" if rates.flops_per_second("bf16") >= _BEARABLE * rates.flops_per_second("fp32") else None


def precision_for(
    config: RunConfig, budget: Budget, hardware: Hardware, rates: MachineRates, models: Models
) -> tuple[str, str]:
    """fp32 or bf16, and why with the rates.

    Raises:
        SettingsError: fp16 was asked for where there is no GPU.
    """
    if config.precision == "fp16" and not budget.on_gpu:
        raise SettingsError([Problem("precision", "fp16", "is for GPUs; on the CPU use fp32 or bf16")])
    if config.precision is not None:
        return config.precision, ""
    if budget.on_gpu:
        gpu = next(gpu for gpu in hardware.gpus if f"cuda:{gpu.index}" == budget.device)
        major = int(gpu.capability.partition(".")[0] or 0)
        if gpu.good_formats and "bf16" not in gpu.good_formats:
            return "fp32", f"products in bf16 came out wrong or failed on the {gpu.name} when they were tried"
        if major >= 8:
            return (
                "bf16",
                f"the {gpu.name} (capability {gpu.capability}) multiplies bf16 several times faster than fp32",
            )
        return "fp32", f"the {gpu.name} (capability {gpu.capability or 'unknown'}) has no fast bf16"
    if not rates.measured:
        return "fp32", "nothing was measured on this machine yet, and bf16 may be very slow without support for it"
    width = min(models.teacher_shape.hidden_size, models.student_shape.hidden_size)
    if width < _SMALLEST_WIDTH:
        return "fp32", f"with a hidden size of {width} conversions cost more than a faster product saves"
    fp32, bf16 = rates.flops_per_second("fp32"), rates.gemm_flops.get("bf16_large", 0.0)
    figures = f"bf16 does {bf16 / 1e9:,.0f} GFLOP/s here, fp32 {fp32 / 1e9:,.0f}"
    return ("bf16", f"{figures}: worth its rounding") if bf16 > _WORTH_IT * fp32 else ("fp32", figures)

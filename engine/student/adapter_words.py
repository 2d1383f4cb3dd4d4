"""An adapter in words, for the report and the student's card. Knows nothing of torch."""

from __future__ import annotations

from typing import Any


def adapter_in_words(adapter: dict[str, Any]) -> str:
    """Describe a student's adapter and where it is, in sentences."""
    quantization = adapter.get("quantization", "none")
    written = (
        f" Training and figures used the student's own weights in {quantization}. The written student has them as they "
        "were stored, so its figures differ somewhat."
    )
    return (
        f"Trained: a low-rank adapter of rank {adapter['rank']} beside {', '.join(adapter['targets'])}, "
        f"{adapter['trained_parameters']:,} parameters ({adapter['share']:.1%} of the student's). The folder adapter "
        "in the student's holds it alone, for peft; the student's weights have it merged in."
        f"{written if quantization != 'none' else ''}"
    )

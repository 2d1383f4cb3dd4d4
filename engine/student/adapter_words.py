"""An adapter in words, for the report and the student's card. Knows nothing of torch."""

from __future__ import annotations

from typing import Any


def adapter_in_words(adapter: dict[str, Any]) -> str:
    """Describe a student's adapter and where it is, in sentences."""
    return (
        f"Trained: a low-rank adapter of rank {adapter['rank']} beside {', '.join(adapter['targets'])}, "
        f"{adapter['trained_parameters']:,} parameters ({adapter['share']:.1%} of the student's). The folder adapter "
        "in the student's holds it alone, for peft; the student's weights have it merged in."
    )

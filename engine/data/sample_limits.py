"""How long the samples of a run may be: the phases keep to it, and the planner counts it."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Each token of a streamed student is a pass over all its layers, from the disk.
_STREAMED_TOKENS = 8


@dataclass(frozen=True)
class SampleLimits:
    """How long the samples of a run may be.

    Attributes:
        tokens: most of each.
        seconds: for all of them.
    """

    tokens: int = 32
    seconds: float = 8.0

    @classmethod
    def of(cls, has_answers: bool) -> SampleLimits:
        """A few lines of a text say enough; an answer of a conversation shows whether the model ends it by itself."""
        return cls(96, 30.0) if has_answers else cls()

    @property
    def of_streamed_student(self) -> SampleLimits:
        """The limits for a student whose layers are streamed."""
        return replace(self, tokens=min(self.tokens, _STREAMED_TOKENS))

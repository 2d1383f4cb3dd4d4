"""The student's model card: the README.md of its folder. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.student.verdict import shown_kl

_FRONT_MATTER = """---
library_name: transformers
pipeline_tag: text-generation
tags: [knowledge-distillation, tinydistill]
---
"""

_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```
"""

_LIMITS = """\
It has the biases of its teacher and of its text, and was evaluated only as shown above. The teacher's licence
applies to models that learn from it as far as that licence says so.
"""


@dataclass(frozen=True)
class ModelCard:
    """The content of a student's README.md.

    Attributes:
        name: of the run.
        teacher: its name.
        student: what the student was made from.
        data: description of its data.
        figures: rows of the table of results: the name of a model to its metrics.
        settings: the settings of the training.
        version: of this program.
        opens: releases of transformers that open it, as a sentence.
        verdict: summary of the results, in sentences.
        adapter: what was trained, in sentences, where that is an adapter.
    """

    name: str
    teacher: str
    student: str
    data: str
    figures: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Any]
    version: str
    opens: str
    verdict: str = ""
    adapter: str = ""

    @property
    def text(self) -> str:
        """The card in Markdown, with the front matter that the Hugging Face Hub reads."""
        parts = (
            _FRONT_MATTER,
            f"# {self.name}\n",
            f"A small language model, distilled from **{self.teacher}** with TinyDistill {self.version}. It began as "
            f"{self.student} and learned from\nthe teacher's predictions on this text: {self.data}."
            f"{self.adapter and f' {self.adapter}'}\n",
            f"## Results\n\n{self.verdict}\n\nOn documents that were kept out of training:\n\n{self._results()}\n",
            _USE,
            f"{self.opens}\n",
            _LIMITS,
            f"## Settings\n\n{self._settings()}\n",
        )
        return "\n".join(parts)

    def _results(self) -> str:
        head = "| model | loss (nats a token) | perplexity | KL to the teacher | top-1 agreement | calibration error |"
        rows = (
            f"| {title} | {row['holdout_loss']:.4f} | {row['perplexity']:.2f} | {shown_kl(row['kl_to_teacher']):.4f} "
            f"| {row['top1_agreement']:.1%} | {row['ece']:.4f} |"
            for title, row in self.figures.items()
        )
        return "\n".join((head, "|---|---|---|---|---|---|", *rows))

    def _settings(self) -> str:
        rows = (f"| `{key}` | {value} |" for key, value in self.settings.items() if value is not None)
        return "\n".join(("| setting | value |", "|---|---|", *rows))

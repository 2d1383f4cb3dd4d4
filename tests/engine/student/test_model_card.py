from __future__ import annotations

from engine.student.model_card import ModelCard

FIGURES = {"holdout_loss": 3.25, "perplexity": 25.79, "kl_to_teacher": 0.5, "top1_agreement": 0.625, "ece": 0.03}


def test_card_tells_teacher_data_figures_and_settings() -> None:
    card = ModelCard(
        name="notes-run",
        teacher="big-model",
        student="layers 0, 2 of its teacher",
        data="notes/",
        figures={"teacher": FIGURES, "before": FIGURES, "after": FIGURES},
        settings={"temperature": 1.0, "steps": None},
        version="1.2",
        opens="Opens in transformers 5.",
        verdict="It is close to its teacher.",
        adapter="An adapter was trained.",
    ).text
    assert card.startswith("---\nlibrary_name: transformers\n")
    for text in ("# notes-run", "**big-model**", "notes/", "| after | 3.2500 | 25.79 | 0.5000 | 62.5% | 0.0300 |"):
        assert text in card
    assert "| `temperature` | 1.0 |" in card
    assert "`steps`" not in card
    assert "teacher's predictions on this text: notes/. An adapter was trained.\n\n## Results\n\nIt is close" in card
    assert "\n\n\n" not in card

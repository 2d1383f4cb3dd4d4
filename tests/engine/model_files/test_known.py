from __future__ import annotations

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from engine.model_files.known import causal_lm_types, masked_lm_types


def test_the_tables_are_those_of_transformers() -> None:
    assert causal_lm_types() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert masked_lm_types() == set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)

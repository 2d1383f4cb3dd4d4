"""Students that train an adapter: their frozen base is in memory, or read layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from engine.model_files.adapter_shape import AdapterShape
from engine.models.load import load_causal_lm
from engine.models.load_quantized import load_quantized
from engine.models.streaming.teacher import StreamedTeacher
from engine.student.adapter import LowRankAdapter
from engine.student.learner import Learner
from engine.student.streamed import StreamedLearner

Method = Literal["none", "int8", "nf4"]
CPU = torch.device("cpu")
SHAPE = AdapterShape(4, 8.0)


def resident(folder: Path, dtype: torch.dtype, method: Method) -> Learner:
    if method == "none":
        model = load_causal_lm(folder, dtype=dtype)
    else:
        model = load_quantized(folder, method, dtype=dtype, device=CPU)
    adapter = LowRankAdapter(model, SHAPE, device=CPU, seed=3)
    return Learner(model, dtype=dtype, gradient_checkpointing=False, trainable=adapter)


def streamed(folder: Path, dtype: torch.dtype, method: Method) -> StreamedLearner:
    base = StreamedTeacher(folder, dtype=dtype, device=CPU, quantization=method, check=False)
    adapter = LowRankAdapter(base.model, SHAPE, device=CPU, seed=3)
    return StreamedLearner(base, dtype=dtype, trainable=adapter, wave_tokens=64)

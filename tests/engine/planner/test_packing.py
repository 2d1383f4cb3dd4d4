from __future__ import annotations

import pytest

from engine.planner import plan
from engine.settings.config import RunConfig
from tests.engine.models.architectures import tiny_architecture
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("student", "asked", "wanted"),
    [
        ("llama", {}, True),
        ("llama", {"packing": False}, False),
        ("mamba", {}, False),
        ("mamba", {"packing": True}, True),
    ],
)
def test_rows_are_packed_unless_the_student_carries_a_state(student, asked, wanted, tmp_path):
    folder = tiny_architecture("mamba") if student == "mamba" else tiny_model("llama")
    config = RunConfig(teacher=str(folder), student=str(folder), output_dir=tmp_path / "run", **asked)
    planned = plan(config, strict=False)
    assert planned.settings.packing is wanted
    (choice,) = [choice for choice in planned.choices if choice.field == "packing"]
    assert choice.by == ("user" if asked else "planner")
    assert asked or (("carry a state" in choice.reason) == (student == "mamba"))

"""``tiny-distill-chat``'s own words: a prompt from the standard input, seeds, ids."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from engine.cli import chat, eval
from engine.talk.conversation import ChatSession
from tests.tiny import tiny_model


@pytest.mark.parametrize(("typed", "asked"), [("One\nquestion.\n", "One\nquestion."), ("", "")])
def test_a_prompt_of_a_dash_is_the_whole_standard_input(typed: str, asked: str, monkeypatch: Any) -> None:
    found = []

    def ask(session: ChatSession, words: str) -> Iterator[str]:
        found.append(words)
        yield "answer"

    monkeypatch.setattr(ChatSession, "ask", ask)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    folder = str(tiny_model("llama", num_layers=2))
    assert chat.main([folder, "--prompt", "-"]) == chat.main([folder, "--prompt", "- x"]) == 0
    assert found == [asked, "- x"]


@pytest.mark.parametrize("program", [chat, eval])
@pytest.mark.parametrize("seed", ["99999999999999999999999", "-99999999999999999999999"])
def test_a_seed_that_no_generator_takes_is_refused(program: Any, seed: str, capsys: Any) -> None:
    assert program.main([str(tiny_model("llama", num_layers=2)), "--seed", seed]) == 2
    assert f"--seed {seed}: expected a whole number" in capsys.readouterr().err

from __future__ import annotations

from typing import Any

import pytest

from engine.data.tokenise import NO_ANSWER, REFUSED, UNFAITHFUL, DocumentTokeniser
from engine.errors import DataError
from tests.tiny import tiny_tokenizer_folder

PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|endoftext|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|endoftext|>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Like those of reasoning models: of an answer that is not the last, the thought is dropped.
FORGETFUL = (
    "{% for m in messages %}<{{ m['role'] }}>{% if loop.last %}{{ m['content'] }}{% else %}"
    "{{ m['content'].split('#')[-1] }}{% endif %}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + PLAIN

TWO_TURNS = (
    {"role": "user", "content": "What leaves records?"},
    {"role": "assistant", "content": "The teacher."},
    {"role": "user", "content": "Who learns?"},
    {"role": "assistant", "content": "The student, ünïcödé 漢字."},
)


def tokenizer_with(template: str | None) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_folder())
    tokenizer.chat_template = template
    return tokenizer


def trained_text(tokenizer: Any, document: Any) -> str:
    """What is trained on, with a bar where something is left out."""
    said = ""
    for token, trained in zip(document.ids, document.trained, strict=True):
        said += f"\x01{token}" if trained else "|"
    while "||" in said:
        said = said.replace("||", "|")
    parts = [[int(number) for number in part.split("\x01")[1:]] for part in said.split("|")]
    return "|".join(tokenizer.decode(part) for part in parts)


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_the_answers_and_their_ends_are_trained_on(template: str) -> None:
    tokenizer = tokenizer_with(template)
    tokeniser = DocumentTokeniser(tokenizer, "folder")
    document = tokeniser.conversation(TWO_TURNS)
    assert document is not None
    assert tokenizer.decode(document.ids) == tokenizer.apply_chat_template(list(TWO_TURNS), tokenize=False)
    said = trained_text(tokenizer, document).replace("<|endoftext|>\n", "<|endoftext|>")
    assert said.strip("|") == "The teacher.<|endoftext|>|The student, ünïcödé 漢字.<|endoftext|>"
    assert not tokeniser.skipped


def test_marks_and_prefixes_tell_the_same_answers() -> None:
    by_marks = DocumentTokeniser(tokenizer_with(MARKED), "folder").conversation(TWO_TURNS)
    by_prefixes = DocumentTokeniser(tokenizer_with(PLAIN), "folder").conversation(TWO_TURNS)
    assert by_marks is not None
    assert by_prefixes is not None
    assert by_marks.ids == by_prefixes.ids
    differing = [
        token
        for token, mark, prefix in zip(by_marks.ids, by_marks.trained or (), by_prefixes.trained or (), strict=True)
        if mark != prefix
    ]
    newline = tokenizer_with(None)("\n", add_special_tokens=False).input_ids
    assert differing == newline * 2, "but for the line break behind an answer"


def test_a_template_that_changes_earlier_turns_is_not_trusted() -> None:
    tokeniser = DocumentTokeniser(tokenizer_with(FORGETFUL), "folder")
    thinking = tuple(
        {**turn, "content": f"thought#{turn['content']}"} if turn["role"] == "assistant" else turn for turn in TWO_TURNS
    )
    assert tokeniser.conversation(thinking) is None
    assert tokeniser.skipped == {UNFAITHFUL: 1}
    assert tokeniser.conversation(thinking[:2]) is not None, "of one answer nothing is dropped"


def test_what_the_template_refuses_is_counted() -> None:
    tokeniser = DocumentTokeniser(tokenizer_with(STRICT), "folder")
    assert tokeniser.conversation(TWO_TURNS[1:]) is None
    assert tokeniser.skipped == {REFUSED: 1}


def test_a_conversation_without_an_answer_is_counted() -> None:
    tokeniser = DocumentTokeniser(tokenizer_with(PLAIN), "folder")
    assert tokeniser.conversation(TWO_TURNS[:1]) is None
    assert tokeniser.skipped == {NO_ANSWER: 1}


def test_a_tokenizer_without_chat_template_is_named() -> None:
    with pytest.raises(DataError, match="no chat template") as caught:
        DocumentTokeniser(tokenizer_with(None), "my/model").conversation(TWO_TURNS)
    assert "my/model" in caught.value.what
    assert "--text_field" in caught.value.todo


def test_text_gets_no_special_tokens() -> None:
    tokenizer = tokenizer_with(None)
    (document,) = DocumentTokeniser(tokenizer, "folder").texts(["A small model"])
    assert tokenizer.decode(document.ids) == "A small model"
    assert document.trained is None
    assert DocumentTokeniser(tokenizer, "folder").texts([]) == []


def test_long_text_is_tokenised_in_parts_and_none_of_it_is_lost() -> None:
    tokenizer = tokenizer_with(None)
    texts = ["A small model learns. " * 10_000, "", "short"]
    found = DocumentTokeniser(tokenizer, "folder").texts(texts)
    assert [tokenizer.decode(document.ids) for document in found] == texts


def test_a_tokenizer_that_puts_a_beginning_before_each_text_is_recognised() -> None:
    from tokenizers import processors

    tokenizer = tokenizer_with(None)
    assert DocumentTokeniser(tokenizer, "folder").bos_id is None
    tokenizer.add_special_tokens({"bos_token": "<|pad|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 1)]
    )
    tokeniser = DocumentTokeniser(tokenizer, "folder")
    assert tokeniser.bos_id == 1
    assert tokeniser.texts(["a model"])[0].ids[0] != 1

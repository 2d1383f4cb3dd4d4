from __future__ import annotations

import json
from typing import Any

import pytest

from engine.data import control_tokens, tokenise
from engine.data.chat_template import (
    CALL_LOST,
    CONSTANT,
    DEVELOPER_AS_SYSTEM,
    REFUSED,
    SYSTEM_MOVED,
    TOOLS_LOST,
    TURN_LOST,
)
from engine.data.tokenise import EMPTY, LOST, NO_ANSWER, NO_REASONING, NOT_LEARNED, NOT_LOCATED, UNMARKED, WEIGHT_0
from engine.data.tokenise import DocumentTokeniser as Tokeniser
from engine.data.turns import read_turns
from tests.engine.data.chat_templates import (
    CHATML,
    CHATML_WITH_DEFAULT,
    DEEPSEEK,
    FAMILIES,
    GEMMA,
    LLAMA3,
    MARKED,
    MISTRAL,
    QWEN3,
    learned_texts,
    tokenizer_with,
)

TWO_ANSWERS = (
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "b?"},
    {"role": "assistant", "content": "two"},
)
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}
WITH_CALL = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4."},
)
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]
PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + PLAIN
# A thought stands before the last answer alone, and no invitation to answer tells of it.
THINKS_LAST = (
    "{% for m in messages %}<{{ m['role'] }}>{% if loop.last and m['role'] == 'assistant' %}[think][/think]{% endif %}"
    "{{ m['content'] }}<|endoftext|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def learn(template: str | None, messages: Any, fields: Any = None) -> tuple[list[str], Tokeniser, str]:
    """Return the learned text of a conversation, the tokeniser with its counts, and all text that is read."""
    tokenizer = tokenizer_with(template)
    tokeniser = Tokeniser(tokenizer, "folder")
    document = tokeniser.conversation(tuple(messages), fields)
    if document is None:
        return [], tokeniser, ""
    return learned_texts(tokenizer, document), tokeniser, tokenizer.decode(document.ids)


# Every family


@pytest.mark.parametrize("name", FAMILIES)
def test_both_answers_and_what_ends_them_are_learned_and_nothing_else(name: str) -> None:
    family = FAMILIES[name]
    learned, tokeniser, read = learn(family.template, TWO_ANSWERS)
    assert tuple(learned) == family.learned
    assert not tokeniser.skipped + tokeniser.noted
    written = tokenizer_with(family.template).apply_chat_template(list(TWO_ANSWERS), tokenize=False)
    assert read == written.rstrip() + "\n\n<|endoftext|>" if name == "alpaca" else read == written


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_turn_is_never_lost(name: str) -> None:
    family = FAMILIES[name]
    learned, tokeniser, read = learn(family.template, (SYSTEM, *TWO_ANSWERS))
    assert tuple(learned) == family.learned
    assert read.count("Be brief.") == 1
    assert read.index("Be brief.") < read.index("a?")
    assert tokeniser.noted == ({} if family.takes_system else {SYSTEM_MOVED: 1})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_developer_turn_is_written_as_what_the_template_takes(name: str) -> None:
    learned, tokeniser, read = learn(FAMILIES[name].template, ({**SYSTEM, "role": "developer"}, *TWO_ANSWERS))
    assert tuple(learned) == FAMILIES[name].learned
    assert read.count("Be brief.") == 1
    assert "developer" in read or tokeniser.noted in ({SYSTEM_MOVED: 1}, {DEVELOPER_AS_SYSTEM: 1})


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_of_weight_0_is_read_and_not_learned(name: str) -> None:
    first, second = ({**turn, "weight": number} for number, turn in enumerate(TWO_ANSWERS[1::2]))
    learned, tokeniser, read = learn(FAMILIES[name].template, (TWO_ANSWERS[0], first, TWO_ANSWERS[2], second))
    assert learned == [FAMILIES[name].learned[1]]
    assert "one" in read
    assert tokeniser.noted == {WEIGHT_0: 1}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_answer_is_never_learned(name: str) -> None:
    learned, tokeniser, _ = learn(FAMILIES[name].template, (TWO_ANSWERS[0], {**TWO_ANSWERS[1], "content": " "}))
    assert learned == []
    assert tokeniser.skipped == {NO_ANSWER: 1}
    learned, tokeniser, _ = learn(
        FAMILIES[name].template, (TWO_ANSWERS[0], {**TWO_ANSWERS[1], "content": ""}, *TWO_ANSWERS[2:])
    )
    assert learned == [FAMILIES[name].learned[1]]
    assert tokeniser.noted == {EMPTY: 1}


# Templates that write a turn in another way once later ones follow


THINKS_LAST_OF_ALL = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages if m['role'] == 'assistant' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endfor -%}{%- set ns.seen = -1 -%}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set ns.seen = ns.seen + 1 %}{% endif %}"
    "<{{ m['role'] }}>"
    "{% if m['role'] == 'assistant' and ns.seen == ns.last %}[think][/think]{% endif %}"
    "{{ m['content'] }}<|endoftext|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("asked", ["b?", "a?", "<assistant>", "[think][/think]"])
def test_a_thought_before_the_last_answer_is_part_of_it_though_the_question_behind_it_moves_it(asked: str) -> None:
    turns = (*TWO_ANSWERS[:2], {"role": "user", "content": asked}, TWO_ANSWERS[3])
    learned, _, read = learn(THINKS_LAST_OF_ALL, turns)
    assert learned == ["one<|endoftext|>", "[think][/think]two<|endoftext|>"]
    assert read.replace(" ", "") == (
        f"<user>a?<|endoftext|><assistant>one<|endoftext|><user>{asked}<|endoftext|><assistant>[think][/think]two"
        "<|endoftext|>"
    )


def test_words_of_others_are_never_an_answers_where_a_template_turns_the_order_round() -> None:
    turned = PLAIN.replace("in messages", "in messages | reverse")
    learned, tokeniser, _ = learn(turned, TWO_ANSWERS)
    assert not any("?" in text for text in learned)
    assert learned or tokeniser.skipped == {NOT_LOCATED: 1}


def test_a_name_that_a_template_does_not_have_is_told_and_no_word_of_the_data() -> None:
    assert learn("{{ now() }}" + PLAIN, TWO_ANSWERS)[1].skipped == {f"{REFUSED} ('now' is undefined)": 1}
    assert learn("{{ [][messages[0].content] }}" + PLAIN, TWO_ANSWERS)[0]
    secret = learn("{{ raise_exception(messages[0].content) }}" + PLAIN, TWO_ANSWERS)[1].skipped
    assert secret == {REFUSED: 1}


@pytest.mark.parametrize(
    "template", ["You help.", "{% for m in messages %}<{{ m['role'] }}>{% endfor %}", " ", "{{ bos_token }}Hi{{ 1 }}"]
)
def test_a_template_that_writes_the_same_whatever_is_said_is_named(template: str) -> None:
    learned, tokeniser, _ = learn(template, TWO_ANSWERS)
    assert learned == []
    assert tokeniser.skipped == {CONSTANT: 1}


def test_a_thought_before_the_last_answer_alone_is_part_of_it() -> None:
    learned, _, read = learn(THINKS_LAST, TWO_ANSWERS)
    assert read == (
        "<user>a?<|endoftext|><assistant>one<|endoftext|><user>b?<|endoftext|>"
        "<assistant>[think][/think]two<|endoftext|>"
    )
    assert learned == ["one<|endoftext|>", "[think][/think]two<|endoftext|>"]


@pytest.mark.parametrize("template", [QWEN3, DEEPSEEK])
def test_what_a_template_drops_of_earlier_answers_is_not_learned(template: str) -> None:
    thinking = [
        {**turn, "content": f"<think>\nhm {turn['content']}\n</think>\n\n{turn['content']}"}
        if turn["role"] == "assistant"
        else turn
        for turn in TWO_ANSWERS
    ]
    learned, _, read = learn(template, thinking)
    assert learned[0] in ("one<|im_end|>", "\n\none<|end_of_sentence|>")
    assert "hm one" not in read
    assert ("hm two" in learned[1]) == (template is QWEN3)


def test_reasoning_that_is_left_out_is_told() -> None:
    turns = [{**turn, "reasoning_content": "hm"} if turn["role"] == "assistant" else turn for turn in TWO_ANSWERS]
    learned, tokeniser, _ = learn(QWEN3, turns)
    assert learned == ["one<|im_end|>", "<think>\nhm\n</think>\n\ntwo<|im_end|>"]
    assert tokeniser.noted == {NO_REASONING: 1}


def test_an_answer_that_the_template_leaves_out_is_told() -> None:
    last_two = PLAIN.replace("in messages", "in messages[-2:]")
    learned, tokeniser, _ = learn(last_two, TWO_ANSWERS)
    assert learned == []
    assert tokeniser.skipped == {TURN_LOST: 1}, "a question is left out as well"
    only_the_last_answer = PLAIN.replace(
        "{{ m['content'] }}", "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}"
    )
    learned, tokeniser, _ = learn(only_the_last_answer, TWO_ANSWERS)
    assert learned == ["two<|endoftext|>"]
    assert tokeniser.noted == {EMPTY: 1}


def test_an_answer_that_cannot_be_located_is_told() -> None:
    lying = PLAIN.replace("<assistant>{% endif", "?{% endif")  # what it invites with is not what it writes
    doubled = lying.replace(
        "{{ m['content'] }}", "{{ m.content }}{% if m.content != 'two' %}{{ m.content }}{% endif %}"
    )
    learned, tokeniser, _ = learn(doubled, TWO_ANSWERS[:2])
    assert learned == []
    assert tokeniser.skipped == {NOT_LOCATED: 1}
    learned, tokeniser, _ = learn(lying, TWO_ANSWERS[:2])
    assert learned == ["one<|endoftext|>"]


# Tool calls


@pytest.mark.parametrize(
    ("template", "call"),
    [
        (QWEN3, '<tool_call>\n{"name": "add", "arguments": {"x": 2}}\n</tool_call><|im_end|>'),
        (LLAMA3, '{"name": "add", "parameters": {"x": 2}}<|eot_id|>'),
        (MISTRAL, '[TOOL_CALLS][{"name": "add", "arguments": {"x": 2}}]<|endoftext|>'),
        (None, ' [{"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}]<|endoftext|>'),
    ],
)
@pytest.mark.parametrize("more", [(), TWO_ANSWERS])
def test_a_tool_call_is_learned_as_the_template_writes_it(template: str | None, call: str, more: Any) -> None:
    learned, tokeniser, read = learn(template, (*WITH_CALL, *more), {"tools": TOOLS, "id": "c7"})
    assert learned[0] == call
    assert "It is 4." in learned[1]
    assert len(learned) == 2 + len(more) // 2
    assert tokeniser.noted == ({} if template else {TOOLS_LOST: 1})
    assert ("adds" in read) == bool(template)


# A turn that says nothing but calls, as the datasets of people write it.
AS_TEXT = {"id": "c1", **CALL, "function": {"name": "add", "arguments": '{"x": 2}'}}
SECOND = {"id": "c2", "type": "function", "function": {"name": "mul", "arguments": '{"y": 3}'}}
SAYS_NOTHING: dict[str, dict[str, Any]] = {
    "null": {"content": None},
    "missing": {},
    "empty": {"content": ""},
    "blank": {"content": " \n"},
    "no parts": {"content": []},
    "an empty part": {"content": [{"type": "text", "text": ""}]},
    "a part of null": {"content": [{"type": "text", "text": None}]},
}
CALLS: dict[str, dict[str, Any]] = {
    "one": {"tool_calls": [AS_TEXT]},
    "an object for arguments": {"tool_calls": [CALL]},
    "two": {"tool_calls": [AS_TEXT, SECOND]},
    "in JSON": {"tool_calls": json.dumps([AS_TEXT])},
    "the old key": {"function_call": {"name": "add", "arguments": '{"x": 2}'}},
    "the old key, the new one null": {"function_call": AS_TEXT["function"], "tool_calls": None},
    "the new key, the old one null": {"tool_calls": [AS_TEXT], "function_call": None},
}
# Templates that write calls where the content is null, where it is not given, and beside any content.
NOT_GIVEN = DEEPSEEK.replace("m['content'] is none", "'content' not in m")
BESIDE = DEEPSEEK.replace("m['content'] is none", "m.tool_calls")


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize(
    ("content", "calls"), [*((content, "one") for content in SAYS_NOTHING), *(("null", calls) for calls in CALLS)]
)
@pytest.mark.parametrize("template", [DEEPSEEK, NOT_GIVEN, BESIDE], ids=["null", "not given", "beside"])
def test_a_turn_of_calls_alone_is_learned_however_it_is_written(
    template: str, content: str, calls: str, is_last: bool
) -> None:
    answer = {"role": "assistant", **SAYS_NOTHING[content], **CALLS[calls]}
    turns = [WITH_CALL[0], answer, *WITH_CALL[2:]]
    learned, tokeniser, _ = learn(template, read_turns(turns[:2] if is_last else turns))
    second = '<|call|>mul\n{"y": 3}<|call_end|>' if calls == "two" else ""
    assert learned[0] == f'<|call|>add\n{{"x": 2}}<|call_end|>{second}<|end_of_sentence|>'
    assert learned[1:] == ([] if is_last else ["It is 4.<|end_of_sentence|>"])
    assert not tokeniser.noted


def test_no_calls_beside_words_are_no_call() -> None:
    for nothing in (None, [], ""):
        turns = read_turns([TWO_ANSWERS[0], {**TWO_ANSWERS[1], "tool_calls": nothing, "function_call": None}])
        learned, tokeniser, _ = learn(DEEPSEEK, turns)
        assert learned == ["one<|end_of_sentence|>"]
        assert not tokeniser.noted


def test_what_opens_a_call_is_learned_though_no_invitation_tells_where_the_answer_begins() -> None:
    opened = DEEPSEEK.replace(
        "{%- for call in m['tool_calls'] -%}", "{{- '<|calls|>' }}{%- for call in m.tool_calls -%}"
    )
    learned, _, _ = learn(opened, WITH_CALL)
    assert learned[0] == '<|calls|><|call|>add\n{"x": 2}<|call_end|><|end_of_sentence|>'


def test_arguments_are_given_as_the_template_wants_them() -> None:
    joined = PLAIN.replace("{{ m['content'] }}", "{{ m.content }}{% for c in m.tool_calls or [] %}{{ 'CALL ' + "
                           "c.function.name + ' ' + c.function.arguments }}{% endfor %}")  # fmt: skip
    learned, tokeniser, _ = learn(joined, WITH_CALL)
    assert learned[0] == 'CALL add {"x": 2}<|endoftext|>'
    assert not tokeniser.noted


def test_tools_are_wrapped_where_the_template_wants_it() -> None:
    _, tokeniser, read = learn(MISTRAL, WITH_CALL, {"tools": [TOOLS[0]["function"]]})
    assert "adds" in read
    assert not tokeniser.noted


@pytest.mark.parametrize("content", ["", "Let me see."])
def test_a_call_that_the_template_does_not_write_is_not_learned_as_an_answer(content: str) -> None:
    turns = (WITH_CALL[0], {**WITH_CALL[1], "content": content}, *WITH_CALL[2:])
    learned, tokeniser, _ = learn(CHATML_WITH_DEFAULT, turns)
    assert learned == ["It is 4.<|im_end|>"]
    assert tokeniser.noted == {CALL_LOST if content else EMPTY: 1}


def test_a_template_that_leaves_out_what_a_tool_said_gives_nothing_to_learn() -> None:
    learned, tokeniser, _ = learn(FAMILIES["drops system"].template, WITH_CALL)
    assert learned == []
    assert tokeniser.skipped == {TURN_LOST: 1}


# Other content of a record


def test_a_template_gets_the_fields_that_it_asks_for() -> None:
    asking = PLAIN + "{{ mood }}{{ documents[0].title }}{% if enable_thinking %}!{% endif %}"
    fields = {
        "mood": "kind",
        "documents": [{"title": "Rivers"}],
        "enable_thinking": True,
        "padding": "x",
        "eos_token": "x",
    }
    _, _, read = learn(asking, TWO_ANSWERS, fields)
    assert read.endswith("kindRivers!")


def test_no_field_takes_the_place_of_what_the_template_always_gets() -> None:
    _, _, read = learn(PLAIN + "{{ eos_token }}", TWO_ANSWERS, {"eos_token": "x", "messages": [], "tools": "none"})
    assert read.endswith("two<|endoftext|>\n<|endoftext|>")


def test_fields_of_a_turn_reach_the_template() -> None:
    named = PLAIN.replace("{{ m['content'] }}", "{{ m.name }}{{ m.weight }}: {{ m['content'] }}")
    learned, _, read = learn(named, ({**TWO_ANSWERS[0], "name": "Ada"}, {**TWO_ANSWERS[1], "weight": 1}))
    assert "<user>Ada: a?" in read, "the weight is ours"
    assert learned == [": one<|endoftext|>"]


# Marks, borders, refusals


def test_marks_of_the_template_are_followed_and_the_end_of_the_turn_is_learned() -> None:
    first = MARKED.replace(
        "{{- m['content'] }}{%- endgeneration -%}", "{{- m['content'][:1] }}{%- endgeneration -%}", 1
    )
    learned, _, _ = learn(first, ({"role": "user", "content": "a?"}, {"role": "assistant", "content": "one"}))
    assert learned == ["o<|im_end|>"]


def test_what_an_answer_says_in_every_script_is_learned_whole() -> None:
    said = "The student, ünïcödé 漢字 🜁."
    learned, _, _ = learn(CHATML, (TWO_ANSWERS[0], {"role": "assistant", "content": said}))
    assert learned == [f"{said}<|im_end|>"]


def test_what_the_template_refuses_is_counted_in_the_templates_own_words() -> None:
    _, tokeniser, _ = learn(STRICT, TWO_ANSWERS[1:])
    assert tokeniser.skipped == {f"{REFUSED} (user first)": 1}
    quoting = "{{ raise_exception('not ' + messages[0].content) }}"
    _, tokeniser, _ = learn(quoting, TWO_ANSWERS)
    assert tokeniser.skipped == {REFUSED: 1}, "logs hold no words of the text"


def test_a_system_turn_that_no_user_turn_follows_is_counted() -> None:
    _, tokeniser, _ = learn(GEMMA, (SYSTEM, {"role": "assistant", "content": "Hello."}))
    assert tokeniser.skipped == {f"{REFUSED} (System role not supported)": 1}


def test_a_conversation_without_an_answer_is_counted() -> None:
    assert learn(PLAIN, TWO_ANSWERS[:1])[1].skipped == {NO_ANSWER: 1}
    assert learn(PLAIN, ({**TWO_ANSWERS[1], "weight": 0},))[1].skipped == {NOT_LEARNED: 1}


def test_a_conversation_that_begins_with_an_answer_is_learned_from() -> None:
    assert learn(CHATML, TWO_ANSWERS[1:])[0] == ["one<|im_end|>", "two<|im_end|>"]


def test_without_a_template_conversations_are_written_plainly() -> None:
    learned, tokeniser, read = learn(None, (SYSTEM, *TWO_ANSWERS))
    assert (
        read
        == "System: Be brief.\n\nUser: a?\n\nAssistant: one<|endoftext|>\n\nUser: b?\n\nAssistant: two<|endoftext|>"
    )
    assert learned == [" one<|endoftext|>", " two<|endoftext|>"]
    assert not tokeniser.has_template


def test_the_tokens_that_end_answers_are_known() -> None:
    tokenizer = tokenizer_with(CHATML)
    tokeniser = Tokeniser(tokenizer, "folder")
    tokeniser.conversation(TWO_ANSWERS)
    assert tokenizer.convert_ids_to_tokens(list(tokeniser.end_ids)) == ["<|im_end|>"]


def test_notes_of_a_conversation_that_is_left_out_are_not_counted() -> None:
    tokeniser = Tokeniser(tokenizer_with(PLAIN), "folder")
    tokeniser.conversation(TWO_ANSWERS[:1], {}, ["noted"])
    assert not tokeniser.noted
    tokeniser.conversation(TWO_ANSWERS, {}, ["noted"])
    assert tokeniser.noted == {"noted": 1}
    assert tokeniser.num_conversations == 2


def test_every_reason_is_a_noun_phrase_that_can_be_counted() -> None:
    reasons = [value for name, value in vars(tokenise).items() if name.isupper() and isinstance(value, str)]
    assert len(reasons) > 8
    assert all(reason.split()[0] in ("conversation", "answer", "system", "developer") for reason in reasons)


# Plain text


def test_text_gets_no_special_tokens() -> None:
    tokenizer = tokenizer_with(None)
    (document,) = Tokeniser(tokenizer, "folder").texts(["A small model"])
    assert tokenizer.decode(document.ids) == "A small model"
    assert document.trained is None
    assert Tokeniser(tokenizer, "folder").texts([]) == []


def test_long_text_is_tokenised_in_parts_and_none_of_it_is_lost() -> None:
    tokenizer = tokenizer_with(None)
    texts = ["A small model learns. " * 10_000, "", "short"]
    found = Tokeniser(tokenizer, "folder").texts(texts)
    assert [tokenizer.decode(document.ids) for document in found] == texts


def test_a_tokenizer_that_puts_a_beginning_before_each_text_is_recognised() -> None:
    from tokenizers import processors

    tokenizer = tokenizer_with(None)
    assert Tokeniser(tokenizer, "folder").bos_id is None
    tokenizer.add_special_tokens({"bos_token": "<|pad|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 1)]
    )
    tokeniser = Tokeniser(tokenizer, "folder")
    assert tokeniser.bos_id == 1
    assert tokeniser.texts(["a model"])[0].ids[0] != 1


@pytest.mark.parametrize("role", ["customer", "narrator", "Bob", "environment"])
def test_a_role_that_the_template_does_not_name_leaves_the_conversation_out(role: str) -> None:
    turns = (TWO_ANSWERS[0], {"role": role, "content": "other words"}, *TWO_ANSWERS[1:])
    tokeniser = Tokeniser(tokenizer_with(CHATML), "folder")
    assert tokeniser.conversation(turns) is None
    assert tokeniser.skipped == {tokenise.UNKNOWN_ROLE: 1}
    named = CHATML.replace(
        "{%- for m", "{%- for m in messages if m['role'] == '" + role + "' -%}{% endfor %}{%- for m", 1
    )
    assert Tokeniser(tokenizer_with(named), "folder").conversation(turns) is not None


def test_the_first_word_of_an_answer_is_learned_behind_a_blank_of_the_invitation() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = tokenizer_with(template)
    found = Tokeniser(tokenizer, "folder").conversation(TWO_ANSWERS)
    assert [text.strip(" ") for text in learned_texts(tokenizer, found)] == ["one\n\n", "two\n\n<|endoftext|>"]


@pytest.mark.parametrize(
    "content",
    [
        "m['content'][0]['text']",
        "(m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join)",
    ],
)
def test_a_template_that_reads_parts_alone_is_given_parts(content: str) -> None:
    tokenizer = tokenizer_with(CHATML.replace("m['content']", content))
    plain = tokenizer_with(CHATML)
    found, wanted = (Tokeniser(each, "folder").conversation(TWO_ANSWERS) for each in (tokenizer, plain))
    assert found == wanted
    assert learned_texts(tokenizer, found) == ["one<|im_end|>", "two<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ({"rag": CHATML, "chat": CHATML}, "of the tokenizer's chat templates chat, rag none is named default"),
        ("{% for m in %}", "line 1 of the template is no valid Jinja"),
        ("\n{{ messages | nofilter }}", "line 2 of the template is no valid Jinja"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(template: Any, reason: str) -> None:
    tokeniser = Tokeniser(tokenizer_with(template), "folder")
    assert tokeniser.conversation(TWO_ANSWERS) is None
    assert tokeniser.skipped == {f"{REFUSED} ({reason})": 1}


# Templates with habits of their own

SPEAKER = "{{ '<|im_start|>' + m['role'] + '\\n' }}"
TURN = SPEAKER + "{{ m['content'] + '<|im_end|>\\n' }}"
INVITES = "{{ '<|im_start|>assistant\\n' }}"
IF_ASKED = "{%- if add_generation_prompt -%}" + INVITES + "{%- endif -%}"
ALL_TURNS = "{%- for m in messages -%}" + TURN + "{%- endfor -%}"
BEGIN = "{%- for m in messages -%}"
HABITS = {
    "always invites": ALL_TURNS + INVITES,
    "invites unless told not to": ALL_TURNS
    + IF_ASKED.replace("if add", "if add_generation_prompt is undefined or add"),
    "invites unless the last turn is an answer": ALL_TURNS
    + "{%- if messages[-1].role != 'assistant' -%}"
    + INVITES
    + "{%- endif -%}",
    "strips": ALL_TURNS.replace("m['content']", "m['content'].strip()") + IF_ASKED,
    "adds the time": "{{- strftime_now('%H:%M:%S.%f') + '\\n' -}}" + ALL_TURNS + IF_ASKED,
    "adds a date": "{%- set date = date_string or strftime_now('%d %b %Y') -%}{{- date -}}" + ALL_TURNS + IF_ASKED,
    "counts in a namespace": "{%- set ns = namespace(n=0) -%}"
    + BEGIN
    + "{%- set ns.n = ns.n + 1 -%}{{ ns.n }}"
    + TURN
    + "{%- endfor -%}"
    + IF_ASKED,
    "marks all": BEGIN + "{% generation %}" + TURN + "{% endgeneration %}{%- endfor -%}" + IF_ASKED,
    "marks nothing": BEGIN + TURN + "{% generation %}{% endgeneration %}{%- endfor -%}" + IF_ASKED,
    "opens a thought": ALL_TURNS + IF_ASKED.replace("assistant\\n", "assistant\\n<think>\\n"),
}
END = "<|im_end|>"
TWICE = (*TWO_ANSWERS[:2], TWO_ANSWERS[3], TWO_ANSWERS[2], TWO_ANSWERS[1])


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (TWO_ANSWERS, ["one", "two"]),
        ((SYSTEM, *TWO_ANSWERS[:2]), ["one"]),
        (TWO_ANSWERS[:3], ["one"]),
        (TWICE, ["one", "two", "one"]),
        ((TWO_ANSWERS[0], {"role": "assistant", "content": 'say "a" > <b>,\n漢'}), ['say "a" > <b>,\n漢']),
        ((TWO_ANSWERS[0], {"role": "assistant", "content": "<|im_end|> is a name"}), ["<|im_end|> is a name"]),
    ],
    ids=["two answers", "a system turn", "a question last", "an answer behind another", "signs", "a name"],
)
def test_whatever_a_template_writes_around_them_answers_and_their_ends_are_learned(
    habit: str, messages: Any, expected: list[str]
) -> None:
    learned, tokeniser, _ = learn(HABITS[habit], messages)
    assert learned == [f"{said}{END}" for said in expected]
    assert set(tokeniser.noted) <= {control_tokens.AS_TEXT}


@pytest.mark.parametrize(
    "template",
    [
        PLAIN_INVITES
        := "{%- for m in messages -%}{{ m.role + ': ' + m.content + '\\n' }}{%- endfor -%}{{ 'assistant: ' }}"
    ],
)
def test_an_answer_without_an_end_is_not_learned_into_the_next_one(template: str) -> None:
    learned, tokeniser, _ = learn(template, TWO_ANSWERS)
    assert [said.strip() for said in learned] == ["one", "two"]
    learned, tokeniser, _ = learn(template, TWICE)
    assert [said.strip() for said in learned] == ["two", "one"]
    assert tokeniser.noted == {LOST: 1}


def test_an_answer_that_the_templates_marks_leave_out_is_counted() -> None:
    last = (
        BEGIN
        + SPEAKER
        + "{%- if loop.last -%}{% generation %}{{ m.content }}{% endgeneration %}{%- else -%}{{ m.content }}"
    )
    learned, tokeniser, _ = learn(last + "{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}" + IF_ASKED, TWO_ANSWERS)
    assert learned == ["two<|im_end|>"]
    assert tokeniser.noted == {UNMARKED: 1}


@pytest.mark.parametrize(
    ("filter_", "said"), [("tojson", '"say <b>\\nmore \\"a\\""'), ("tojson(indent=1)", '"say <b>\\nmore \\"a\\""')]
)
def test_an_answer_that_a_template_escapes_is_learned_as_it_is_written(filter_: str, said: str) -> None:
    messages = (TWO_ANSWERS[0], {"role": "assistant", "content": 'say <b>\nmore "a"'})
    escaping = (
        BEGIN + SPEAKER + "{{ m.content | FILTER }}{{ '<|im_end|>\\n' }}{%- endfor -%}".replace("FILTER", filter_)
    )
    assert learn(escaping + IF_ASKED, messages)[0] == [said + END]
    whole = learn("{{ messages | tojson }}", messages)[0]
    assert whole[0].startswith(said[1:-1])


def test_a_template_that_writes_capitals_leaves_nothing_out() -> None:
    learned, _, _ = learn(ALL_TURNS.replace("m['content']", "m['content'].upper()") + IF_ASKED, TWO_ANSWERS)
    assert learned == [f"ONE{END}", f"TWO{END}"]


# Templates that write the end of a turn elsewhere than behind the turn

_OPEN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
_INVITE = "{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
ENDS_ELSEWHERE = {
    "behind each but the last": (
        "{% for m in messages %}" + _OPEN + "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}" + _INVITE,
        ["one<|im_end|>", "two<|im_end|>"],
    ),
    "before each but the first": (
        "{% for m in messages %}{% if not loop.first %}<|im_end|>\n{% endif %}" + _OPEN + "{% endfor %}" + _INVITE,
        ["one<|im_end|>", "two<|im_end|>"],
    ),
    "on a line of its own": (
        "{% for m in messages %}{% if not loop.first %}{{ '\n' }}<|im_end|>\n{% endif %}" + _OPEN + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n' }}<|im_end|>\n<|im_start|>assistant\n{% endif %}",
        ["one\n<|im_end|>", "two\n<|im_end|>"],
    ),
    "the end of the text, between": (
        "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ eos_token }}{% endif %}",
        ["one<|endoftext|>", "two<|endoftext|>"],
    ),
    "once behind all": (
        "{% for m in messages %}" + _OPEN + "\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
        ["one\n", "two\n<|endoftext|>"],
    ),
    "nothing but the next turn's begin": (
        "{% for m in messages %}" + _OPEN + "\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["one\n", "two\n<|endoftext|>"],
    ),
    "the begin of the text before each question": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}Q: {% else %}A: {% endif %}"
        "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}",
        [" one\n", " two\n<|endoftext|>"],
    ),
}


@pytest.mark.parametrize(("template", "wanted"), ENDS_ELSEWHERE.values(), ids=ENDS_ELSEWHERE)
def test_what_ends_an_answer_is_learned_wherever_a_template_writes_it(template: str, wanted: list[str]) -> None:
    learned, tokeniser, _ = learn(template, TWO_ANSWERS)
    assert learned == wanted
    assert not tokeniser.skipped + tokeniser.noted
    last = "<|im_end|>" if "<|im_end|>" in wanted[1] else "<|endoftext|>"
    assert tokeniser.end_ids == {tokenizer_with(None).convert_tokens_to_ids(last)}


def test_a_template_that_cuts_contents_is_not_given_parts_in_pythons_notation() -> None:
    cuts = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'][:4] }}<|im_end|>{% endfor %}"
    assert "{'" not in learn(cuts, TWO_ANSWERS)[2]

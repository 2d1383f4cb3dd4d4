"""Positions of the answers in the output of a chat template, exact to the character.

A template is a program: it may write a turn differently once later turns follow (reasoning is dropped, tools move to
the last question). So only its output is used. An answer begins where the output of the conversation before it, with
the template's generation prompt, ends; it ends where the output of the conversation up to it ends. If the whole output
does not begin with these, a marker word replaces the answer, and the text around the marker is compared.

Source of the invitation: ``add_generation_prompt``, https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from engine.data.turns import Turn

Render = Callable[[Sequence[Turn], bool], str | None]
"""Turns, and whether to invite an answer, to text; None where the template refuses them."""

Span = tuple[int, int]

MARK = "zqvMarkedPlaceqvz"
"""Stands for a piece of a turn. Nothing that a template looks for, and no text that it would trim."""


def locate(render: Render, messages: Sequence[Turn], number: int, whole: str) -> Span | None:
    """Return the position of an answer.

    Args:
        render: the template.
        messages: the conversation.
        number: of the answer's turn.
        whole: what the template writes of the conversation.

    Returns:
        The first character and the one after the last; None if they are unknown.
    """
    invited = render(messages[:number], True) if number else None
    start = len(invited) if invited is not None and whole.startswith(invited) else None
    if start is not None and messages[number - 1]["role"] == "assistant":
        # Some templates invite no answer behind another one, but write who speaks before it.
        is_invited = invited != render(messages[:number], False)
        plain = None if is_invited else _begin_of_plain(render, messages[:number], whole)
        start = start if plain is None else plain
    if number == len(messages) - 1:
        end: int | None = _end_of_the_last(render, messages, whole)
    else:
        until = render(messages[: number + 1], False)
        end = len(until) if until is not None and whole.startswith(until) else None
    if start is not None and end is not None:
        return (start, end) if start <= end else None
    for marked in _marked(messages[number]):
        found = _by_mark(render, messages, number, whole, marked, invited)
        if found is not None:
            first = found[0] if start is None else start
            last = found[1] if end is None else end
            if start is None and first is not None:
                plain = _begin_of_plain(render, messages[:number], whole)
                first = first if plain is None else min(first, plain)
            if first is not None and last is not None and first <= last:
                return first, last
    return None


def left_out(render: Render, messages: Sequence[Turn], whole: str) -> list[int]:
    """Turns, of others than the assistant, of whose content the template writes nothing."""
    marks = {
        number: f"{MARK}{number}x"
        for number, turn in enumerate(messages)
        if turn["role"] != "assistant" and turn["content"].strip()
    }
    marked = render(
        [{**turn, "content": marks.get(number, turn["content"])} for number, turn in enumerate(messages)], False
    )
    if marked is None:  # it wants something of the content
        return [number for number in marks if messages[number]["content"].strip() not in whole]
    marked = marked.lower()  # some write a content in capitals
    return [number for number, mark in marks.items() if mark.lower() not in marked]


def _by_mark(
    render: Render, messages: Sequence[Turn], number: int, whole: str, marked: Turn, invited: str | None
) -> tuple[int | None, int | None] | None:
    """Begin and end of an answer from two renderings with a mark in it: as the last turn, and as what it is."""
    last = render([*messages[:number], marked], False)
    among = render([*messages[:number], marked, *messages[number + 1 :]], False)
    if last is None or among is None or last.count(MARK) != 1 or among.count(MARK) != 1:
        return None
    before_last, after_last = last.split(MARK)
    before, after = among.split(MARK)
    if not whole.endswith(after) or len(before) + len(after) > len(whole):
        return None
    # Behind the mark comes what ends a turn; with it, as far as the template writes the same within a conversation.
    end = len(whole) - len(after)
    end += _shared(after_last, after)
    if not whole.startswith(before):
        return None, end
    # Between the invitation and the mark stands what is part of the answer: a blank, a thought that is empty.
    if invited is not None and before_last.startswith(invited):
        part = before_last[len(invited) :]
    else:
        part = _behind_the_invitation(render, messages[:number], invited)
    return len(before) - (len(part) if before.endswith(part) else 0), end


def _behind_the_invitation(render: Render, before: Sequence[Turn], invited: str | None) -> str:
    """Return the text between the invitation and an answer, of a template that changes the turns before; "" if unknown.

    The invitation is looked for behind what the turn before says, so that nothing of others is taken for the answer's.
    """
    asked = render(before, False) if before and before[-1]["role"] in ("user", "tool") else None
    if asked is None or invited is None or not invited.startswith(asked):
        return ""
    invitation = invited[len(asked) :]
    last = {**before[-1], "content": f"{MARK}y"}
    text = render([*before[:-1], last, {"role": "assistant", "content": f"{MARK}z"}], False)
    if not invitation.strip() or text is None or text.count(f"{MARK}y") != 1 or text.count(f"{MARK}z") != 1:
        return ""
    return text.partition(f"{MARK}y")[2].partition(f"{MARK}z")[0].partition(invitation)[2]


def _begin_of_plain(render: Render, before: Sequence[Turn], whole: str) -> int | None:
    """Where an answer of words alone would begin, as far as the whole begins with what a template writes before it.

    The opening of a tool call, or of a thought, stands between this place and the first word of the call that can be
    marked.
    """
    text = render([*before, {"role": "assistant", "content": MARK}], False)
    if text is None or text.count(MARK) != 1:
        return None
    opening = text.partition(MARK)[0]
    return len(opening) if whole.startswith(opening) else None


def _end_of_the_last(render: Render, messages: Sequence[Turn], whole: str) -> int:
    """Where the last answer ends: what a template writes behind a whole conversation is not the answer's."""
    continued = render([*messages, {"role": "user", "content": MARK}], False)
    if continued is None or continued.startswith(whole):
        return len(whole)
    end = _shared(whole, continued)
    content = (messages[-1]["content"] or "").strip()
    # Of an answer that is written in another way once a question follows, this shows nothing.
    place = whole.rfind(content) if content else -1
    return end if 0 <= place <= end - len(content) else len(whole)


def _marked(turn: Turn) -> Iterator[Turn]:
    """The turn with a mark in place of something that a template writes of it."""
    if (turn["content"] or "").strip():
        yield {**turn, "content": MARK}
    calls = turn.get("tool_calls")
    if calls and isinstance(calls[-1], dict) and isinstance(calls[-1].get("function"), dict):
        call = {**calls[-1], "function": {**calls[-1]["function"], "name": MARK}}
        yield {**turn, "tool_calls": [*calls[:-1], call]}
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(turn.get(key), str) and turn[key].strip():
            yield {**turn, key: MARK}


def _shared(one: str, other: str) -> int:
    """Length of what two texts both begin with, not ending within a tag of which they share the first characters."""
    length = _common(one, other)
    if length == len(one):
        return length
    return max((one.rfind(mark, 0, length) + 1 for mark in "\n>]"), default=0)


def _common(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )

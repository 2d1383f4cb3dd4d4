"""Tokenisation of texts and conversations with the models' tokenizer.

A text gets no special tokens (the packer adds them between documents). A conversation is rendered with the tokenizer's
chat template; only the assistant's answers are trained, with the token that ends a turn. An answer that cannot be
located in the template's output is not trained; a conversation without located answers is left out. Both are counted.
Names of control tokens in what people wrote stay text (control_tokens.py). Knows nothing of files and rows.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from engine.data import control_tokens
from engine.data.answers import Span, locate
from engine.data.chat_template import (
    CALL_LOST,
    UNKNOWN_ROLE,
    ChatTemplate,
    LeavesOut,
    TemplateRefuses,
    Written,
    calls_written,
    rendered,
    why_not,
)
from engine.data.control_tokens import AS_TEXT, ENDED_TWICE, ControlTokens, Encoded
from engine.data.packing import TokenisedDocument
from engine.data.pieces import cut_text
from engine.data.second_tokenizer import NotApart
from engine.data.tally import NO_ANSWER, NOT_LEARNED
from engine.data.turns import KNOWN_ROLES, Messages, Turn, is_empty, is_learned
from engine.errors import DataError

# A longer text is tokenised in parts, cut at paragraph borders: the tokenizer works on parts at once, and on long ones
# slower (3 MB in parts of 32k characters took 1.2 s of CPU and 20 MB, in parts of 512k 1.9 s and 165 MB).
_SEGMENT_CHARACTERS = 32_768

NOT_LOCATED = "conversation of which no answer can be located in what the chat template writes"

WEIGHT_0 = "answer with the weight 0 (read, not learned)"
EMPTY = "answer of which the chat template writes nothing (not learned)"
LOST = "answer that cannot be located in what the chat template writes (read, not learned)"
UNMARKED = "answer that the chat template does not mark as the assistant's (read, not learned)"
NO_REASONING = "answer whose reasoning the chat template leaves out"


class DocumentTokeniser:
    """A tokenizer of documents.

    Args:
        tokenizer: a fast tokenizer of transformers.
        name: the folder it came from, for messages.
        vocab_size: tokens from this id on have no row in the models; None for no such bound.

    Attributes:
        skipped: conversations that were left out, reason to count.
        noted: what of the others was changed or is not learned, reason to count.
        noted_texts: what of plain texts was read in one of two ways or is not learned, reason to count.
        num_conversations: that were met, those left out too.
        end_ids: tokens that end an answer, as far as conversations were met.
        bos_id: the token that the tokenizer puts before each text, for models that were trained to see one; None when
            it puts none.
    """

    def __init__(self, tokenizer: Any, name: str, vocab_size: int | None = None) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"The tokenizer in {name} is a slow one.",
                "Texts are tokenised by the fast kind (tokenizer.json).",
                "Convert it once with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
            )
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._controls = ControlTokens(tokenizer, self._template.all_sources(), vocab_size)
        self.skipped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.noted_texts: Counter[str] = Counter()
        self.num_conversations = 0
        self.end_ids: set[int] = set()
        self.bos_id = _leading_bos(tokenizer)
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        # Tokenizers of bytes know every character; of them, GPT-2's names the end of a text as its unknown token.
        self._unknown_id = None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id

    @property
    def has_template(self) -> bool:
        """Return whether the tokenizer has a chat template; without one conversations are written plainly."""
        return not self._template.is_plain

    def texts(self, texts: Sequence[str]) -> list[TokenisedDocument]:
        """Tokenise plain texts; ones that give no token come back empty."""
        if not texts:
            return []
        segments = [cut_text(text, _SEGMENT_CHARACTERS) for text in texts]
        encoded = self._tokenizer(
            [segment for parts in segments for segment in parts],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids = iter(encoded["input_ids"])
        found = [TokenisedDocument([token for _ in parts for token in next(ids)]) for parts in segments]
        for number, (text, parts) in enumerate(zip(texts, segments, strict=True)):
            if self._controls.is_in(text):
                if self._controls.is_written_in(text):
                    self.noted_texts[control_tokens.TEXT_AS_TOKENS] += 1
                else:
                    found[number] = self._without_controls(parts)
        return [self._without_unknown(document) for document in found]

    def _without_unknown(self, document: TokenisedDocument) -> TokenisedDocument:
        """The text with its unknown tokens read and not learned; the end of it is learned as of any other."""
        ids = document.ids
        if self._unknown_id is None or self._unknown_id not in ids:
            return document
        self.noted_texts[control_tokens.UNKNOWN_CHARACTERS.format("text")] += 1
        end = [self._tokenizer.eos_token_id] if self._tokenizer.eos_token_id is not None else []
        return TokenisedDocument([*ids, *end], [token != self._unknown_id for token in ids] + [True] * len(end))

    def _without_controls(self, parts: Sequence[str]) -> TokenisedDocument:
        try:
            ids = [token for part in parts for token in self._controls.ids_of_text(part)]
        except NotApart:
            self.skipped[control_tokens.NOT_APART.format("text")] += 1
            return TokenisedDocument([])
        self.noted_texts[control_tokens.TEXT_AS_TEXT] += 1
        return TokenisedDocument(ids)

    def conversation(
        self, messages: Messages, fields: Mapping[str, Any] | None = None, notes: Sequence[str] = ()
    ) -> TokenisedDocument | None:
        """Tokenise a conversation; return None if it is left out, which is counted.

        Args:
            messages: the turns.
            fields: other fields of the record, for templates that ask for them.
            notes: what was noted when it was read; counted where the conversation is used.
        """
        self.num_conversations += 1
        if not any(turn["role"] == "assistant" for turn in messages):
            known = all(turn["role"] in KNOWN_ROLES for turn in messages)
            return self._left_out(NO_ANSWER if known else UNKNOWN_ROLE)
        if not any(map(is_learned, messages)):
            return self._left_out(NOT_LEARNED)
        messages, num_ended = self._controls.without_ends(messages)
        fields = dict(fields or {})
        is_guarded = self._controls.are_in(messages, fields)
        if is_guarded:
            messages, fields = self._controls.guarded(messages), self._controls.guarded(fields)
        try:
            written = self._template.write(messages, fields)
            spans, found = self._answers(written)
            if not spans:
                return self._left_out(NO_ANSWER if EMPTY in found else NOT_LOCATED if LOST in found else NO_ANSWER)
            document, unmarked = self._tokenised(written, spans, is_guarded=is_guarded)
            found += [UNMARKED] * unmarked
        except (TemplateRefuses, LeavesOut) as error:
            return self._left_out(why_not(self._template, error))
        except NotApart:
            return self._left_out(control_tokens.NOT_APART.format("conversation"))
        if not any(document.trained or ()):
            return self._left_out(NO_ANSWER)
        if self._unknown_id is not None and self._unknown_id in document.ids:
            found.append(control_tokens.UNKNOWN_CHARACTERS.format("conversation"))
        guarded = [ENDED_TWICE] * num_ended + [AS_TEXT] * is_guarded
        self.noted.update([*notes, *guarded, *written.notes, *found])
        return document

    def _left_out(self, reason: str) -> TokenisedDocument | None:
        self.skipped[reason] += 1
        return None

    def _answers(self, written: Written) -> tuple[list[Span], list[str]]:
        """Return the positions of the trained answers, and notes about the others."""

        def render(turns: Sequence[Turn], invites: bool) -> str | None:
            return rendered(self._template, turns, written.fields, invites)

        spans: list[Span] = []
        found: list[str] = []
        for number, turn in enumerate(written.messages):
            if turn["role"] != "assistant":
                continue
            if not is_learned(turn):
                found.append(WEIGHT_0)
                continue
            span = locate(render, written.messages, number, written.text)
            if span is not None and self._template.always_invites:
                span = self._without_invitation(span, written, number)
            if self._is_nothing(render, written, number, span):
                found.append(EMPTY)
            elif span is None:
                found.append(LOST)
            elif not calls_written(turn, written.text[slice(*span)]):
                found.append(CALL_LOST)
            else:
                if _reasoning(turn) not in written.text[slice(*span)]:
                    found.append(NO_REASONING)
                spans.append(span)
        if any(behind[0] < before[1] for before, behind in itertools.pairwise(spans)):
            # The template turns the order round: an answer's place would hold the words of others.
            return [], [*found, *[LOST] * len(spans)]
        return spans, found

    def _without_invitation(self, span: Span, written: Written, number: int) -> Span | None:
        """The place of an answer up to the token that ends it, where a template invites another one behind each.

        Returns:
            None if nothing ends an answer behind which another one begins.
        """
        said, content = written.text[slice(*span)], (written.messages[number]["content"] or "").strip()
        behind = said.find(content) + len(content) if content in said else 0
        end = self._controls.first_end(said, behind)
        if end is not None:
            return span[0], span[0] + end
        following = written.messages[number + 1 : number + 2]
        return None if following and following[0]["role"] == "assistant" else span

    def _is_nothing(self, render: Any, written: Written, number: int, span: Span | None) -> bool:
        """Return whether the template writes the same for an answer and for none."""
        turn = written.messages[number]
        content = (turn["content"] or "").strip()
        if content and span is not None and content in written.text[slice(*span)]:
            return False
        if is_empty(turn):
            return True
        nothing = {"role": "assistant", "content": ""}
        without = render([*written.messages[:number], nothing, *written.messages[number + 1 :]], False)
        return bool(without == written.text)

    def _encoded(self, text: str) -> Encoded:
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        return Encoded(text, list(encoded["input_ids"]), encoded["offset_mapping"])

    def _tokenised(self, written: Written, spans: list[Span], *, is_guarded: bool) -> tuple[TokenisedDocument, int]:
        """The tokens of a conversation, and how many answers the template's own marks leave out."""
        if is_guarded:
            encoded, spans = self._controls.encoded(written.text, spans)
        else:
            encoded = self._encoded(written.text)
        ids, offsets = encoded.ids, encoded.offsets
        marks = None
        if self._template.has_marks(written.fields):
            marks = self._template.marks(written.messages, written.fields)
            if len(marks) != len(ids) or not any(marks):
                marks = None
        trained = [False] * len(ids)
        unmarked = 0
        for first, last in spans:
            inside = [
                place
                for place, (start, end) in enumerate(offsets)
                if start < last
                and end <= last
                and (first <= start or _begins_with_blanks(encoded.text, start, first, end))
            ]
            if marks is not None:
                inside = _as_marked(inside, marks, ids, self._special)
                unmarked += not inside
            inside = _without_what_follows_the_end(inside, encoded, self._special)
            inside = self._with_end_behind(inside, encoded) if marks is None else inside
            for place in inside:
                trained[place] = ids[place] != self._unknown_id
            if inside and ids[inside[-1]] in self._special:
                self.end_ids.add(ids[inside[-1]])
        end_ids = self._end_ids_between or [each for each in [self._tokenizer.eos_token_id] if each is not None]
        ends = max((place for place, is_trained in enumerate(trained) if is_trained), default=-1)
        if end_ids and ends >= 0 and ids[ends] not in self._special and not encoded.text[offsets[ends][1] :].strip():
            # Nothing of the template's says where the last answer ends: the end of the text does.
            ids, trained = [*ids[: ends + 1], *end_ids], [*trained[: ends + 1], *[True] * len(end_ids)]
            self.end_ids.add(end_ids[-1])
        return TokenisedDocument(ids, trained, whole=True), unmarked

    @functools.cached_property
    def _end_ids_between(self) -> list[int]:
        """Tokens up to the one that ends an answer, for a template that writes it before the next turn alone."""
        ids = self._encoded(self._template.between).ids
        first = next((place for place, token in enumerate(ids) if token in self._special), None)
        if first is None or self._tokenizer.decode(ids[:first]).strip():
            return []
        return ids[: first + 1]

    def _with_end_behind(self, inside: list[int], encoded: Encoded) -> list[int]:
        """Places of an answer, and of the token right behind it that ends it, though the template does not count it."""
        if not inside or encoded.ids[inside[-1]] in self._special:
            return inside
        ends = {self._tokenizer.eos_token_id, *self._end_ids_between[-1:]}
        behind = inside[-1] + 1
        for place in range(behind, len(encoded.ids)):
            if encoded.ids[place] in ends:
                return [*inside, *range(behind, place + 1)]
            if encoded.text[slice(*encoded.offsets[place])].strip():
                break
        return inside


def _begins_with_blanks(text: str, start: int, first: int, end: int) -> bool:
    """Return whether a token that begins before an answer has only blanks of the invitation: `` The`` of ``A: The``.

    Any other token of both is not all the assistant's.
    """
    return start < first < end and not text[start:first].strip(" ") and bool(text[first:end].strip())


def _reasoning(turn: Turn) -> str:
    value = next((turn[key] for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key)), "")
    return value.strip() if isinstance(value, str) else ""


def _as_marked(inside: list[int], marks: list[bool], ids: list[int], special: set[int]) -> list[int]:
    """Places of an answer that the template marks, and the token that ends the turn right behind them."""
    marked = [place for place in inside if marks[place]]
    if marked and ids[marked[-1]] not in special:
        following = marked[-1] + 1
        if following in inside and ids[following] in special:
            marked.append(following)
    return marked


def _without_what_follows_the_end(inside: list[int], encoded: Encoded, special: set[int]) -> list[int]:
    """Places up to the token that ends the turn: a line break behind it is never the model's to write."""
    ends = next((number for number in reversed(range(len(inside))) if encoded.ids[inside[number]] in special), None)
    if ends is None or ends == len(inside) - 1:
        return inside
    rest = encoded.text[encoded.offsets[inside[ends]][1] : encoded.offsets[inside[-1]][1]]
    return inside if rest.strip() else inside[: ends + 1]


def _leading_bos(tokenizer: Any) -> int | None:
    """The beginning-of-text id, if the tokenizer itself puts it before a text."""
    bos_id: int | None = tokenizer.bos_token_id
    with_special = tokenizer("a", verbose=False)["input_ids"]
    without = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    return bos_id if bos_id is not None and with_special[:1] == [bos_id] and without[:1] != [bos_id] else None

"""The process that holds a model and answers: ``python -m engine.talk.speaker FOLDER``.

It reads one request a line on standard input, and writes one JSON object a line: pieces of the answer as they come,
then its end. A process of its own keeps torch out of the program that the user types into, and two models out of one
memory.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    TextIteratorStreamer,
)
from transformers.utils import logging as transformers_logging

from engine.machine import safe_child
from engine.machine.products import use_float32_for_many_rows, use_products
from engine.model_files.spec import read_spec
from engine.model_files.weight_files import is_decoded
from engine.models.load import cannot_be_mapped, load_causal_lm


def _loaded(folder: Path, *, trust_remote_code: bool) -> PreTrainedModel:
    dtype = torch.bfloat16
    if not is_decoded(folder):
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
            return model.eval()
        except Exception as error:  # of transformers or of safetensors, which has a class of its own
            if not cannot_be_mapped(error):
                raise
        dtype = getattr(torch, read_spec(folder, trust_remote_code=trust_remote_code).dtype)
    model = load_causal_lm(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


class Speaker:
    """A model that answers.

    Args:
        folder: the model's folder.
        trust_remote_code: run code that comes with the model.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        self.model = _loaded(folder, trust_remote_code=trust_remote_code)
        use_products(self.model)
        use_float32_for_many_rows(self.model)  # a question, with what was said before it
        self.has_template = self.tokenizer.chat_template is not None
        self._end_with_the_tokenizers_end()

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """The text that the model continues: through its chat template, or the last turn's words as they are."""
        if not self.has_template:
            return messages[-1]["content"]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    def answer(
        self, messages: list[dict[str, str]], *, max_tokens: int, temperature: float, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Pieces of an answer, ``{"text": …}``, and its end.

        The end is ``{"tokens": …, "seconds": …, "whole": …, "left_out": …, "shortened": …}``. An answer is whole where
        the model ended it by itself. ``left_out`` counts turns that the model's context has no room for, and a question
        that alone is longer is ``shortened``.

        Args:
            messages: the conversation so far; the last turn is the user's.
            max_tokens: most tokens of the answer; fewer where the context ends before.
            temperature: 0 takes the likeliest token each time.
            seed: of the draws.
        """
        positions = self._positions()
        # At most half of the context is kept free for the answer.
        ids, left_out, shortened = self._fitting(messages, positions - min(max_tokens, positions // 2))
        max_tokens = min(max_tokens, positions - ids.shape[1])
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        torch.manual_seed(seed)
        began = time.monotonic()
        drawn = {"do_sample": True, "temperature": temperature} if temperature > 0 else {
            "do_sample": False, "temperature": None, "top_p": None, "top_k": None}  # fmt: skip
        made: list[torch.Tensor] = []
        failed: list[BaseException] = []

        def generate() -> None:
            try:
                made.append(
                    self.model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=max_tokens,
                        streamer=streamer,
                        pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
                        **drawn,
                    )
                )
            except BaseException as error:  # raised again below: this thread has no reader
                failed.append(error)
            finally:
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        for piece in streamer:
            if piece:
                yield {"text": piece}
        thread.join()
        if failed:
            raise failed[0]
        tokens = int(made[0].shape[1] - ids.shape[1])
        whole = bool(tokens) and int(made[0][0, -1]) in self._ends()
        yield {
            "tokens": tokens,
            "seconds": time.monotonic() - began,
            "whole": whole,
            "left_out": left_out,
            "shortened": shortened,
        }

    def _fitting(self, messages: list[dict[str, str]], room: int) -> tuple[torch.Tensor, int, bool]:
        """The ids of a conversation that fits: without its oldest turns, or with the end of its question.

        Args:
            messages: the conversation.
            room: most ids.

        Returns:
            ids, [1, tokens]; the number of turns that are left out; whether the question is shortened.
        """
        start = int(messages[0]["role"] == "system")
        if not self.has_template:
            messages, start = messages[-1:], 0  # nothing else is read
        left_out = 0
        while True:
            kept = messages[:start] + messages[start + left_out :]
            encoded = self.tokenizer(self.prompt(kept), return_tensors="pt", add_special_tokens=not self.has_template)
            ids: torch.Tensor = encoded.input_ids
            if not ids.shape[1]:  # an empty question: a text begins
                return torch.tensor([[self._beginning()]]), left_out, False
            if ids.shape[1] <= room:
                return ids, left_out, False
            if left_out + 2 >= len(messages) - start:
                return ids[:, -max(1, room) :], left_out, True
            left_out += 2  # a question and its answer

    def _beginning(self) -> int:
        """The token behind which a text begins; rows of documents have the end of the text before there."""
        named = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next((token for token in named if token is not None), 0)

    def _end_with_the_tokenizers_end(self) -> None:
        """Stop at the token with which the tokenizer ends a text, though the generation's settings do not name it."""
        end = self.tokenizer.eos_token_id
        if end is not None and end not in self._ends():
            self.model.generation_config.eos_token_id = [*self._ends(), end]

    def _ends(self) -> list[int]:
        """The tokens at which an answer ends."""
        named = self.model.generation_config.eos_token_id
        return list(named) if isinstance(named, list) else [named] if named is not None else []

    def _positions(self) -> int:
        found = getattr(self.model.config, "max_position_embeddings", None) or 2048
        return int(found)


def serve(speaker: Speaker, requests: TextIO, out: TextIO) -> None:
    """Answer request after request until the input ends."""

    def write(value: dict[str, Any]) -> None:
        out.write(json.dumps(value, ensure_ascii=False) + "\n")
        out.flush()

    write({"ready": True, "has_template": speaker.has_template})
    for line in requests:
        request = json.loads(line)
        for piece in speaker.answer(
            request["messages"],
            max_tokens=request["max_tokens"],
            temperature=request["temperature"],
            seed=request["seed"],
        ):
            write(piece)


def main() -> int:
    """Serve the model that is named on the command line."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    out = safe_child.answers()
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    serve(Speaker(Path(sys.argv[1]), trust_remote_code="--trust_remote_code" in sys.argv[2:]), sys.stdin, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A conversation with a model in a process of its own. No torch here."""

from __future__ import annotations

import collections
import contextlib
import json
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from engine.errors import ModelError
from engine.machine import safe_child
from engine.machine.compute import SLEEPING_THREADS

_KEPT_LINES = 20  # of a model's process on standard error


class ChatSession:
    """A client of one model that keeps the conversation.

    Args:
        folder: the model's folder.
        trust_remote_code: run code that comes with the model.
        max_tokens: maximum number of tokens in an answer.
        temperature: 0 takes the most likely token each time.
        seed: of the draws.

    Attributes:
        messages: the turns so far.
        tokens_per_second: of the last answer; None before the first.
        is_whole: the model ended its last answer itself, before the maximum number of tokens; None before the first.
        num_tokens: of the last answer.
        left_out: turns at the beginning that the model did not read for its last answer, since the conversation is
            longer than its context.
        is_shortened: the last question alone is longer than the model's context, so the model read only its end.
        has_template: the model was made for conversations.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trust_remote_code: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.7,
        seed: int = 0,
    ) -> None:
        self.folder = folder
        self.messages: list[dict[str, str]] = []
        self.tokens_per_second: float | None = None
        self.is_whole: bool | None = None
        self.num_tokens, self.left_out, self.is_shortened = 0, 0, False
        self.has_template = True
        self._request = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self._trust = ["--trust_remote_code"] if trust_remote_code else []
        self._process: subprocess.Popen[str] | None = None
        self._listener = threading.Thread()
        self._complaints: collections.deque[str] = collections.deque()

    def __enter__(self) -> ChatSession:
        """Nothing is loaded before the first question."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the model's process."""
        self.close()

    def ask(self, words: str) -> Generator[str, None, None]:
        """The answer, piece by piece.

        Raises:
            ModelError: the model cannot be loaded, or its process ended.
        """
        words = words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # bytes that are no text
        asked = len(self.messages)
        self.messages.append({"role": "user", "content": words})
        answer = ""
        try:
            process = self._process or self._start()
            self._send(process)
            while "text" in (piece := self._read(process)):
                answer += piece["text"]
                yield piece["text"]
        except ModelError:
            del self.messages[asked:]  # a question without an answer: many templates take no second one after it
            raise
        except BaseException:  # the user stopped the answer; its beginning stays in the conversation
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                del self.messages[asked:]
            self.close()
            raise
        self.is_whole = bool(piece["whole"])
        self.num_tokens, self.left_out = int(piece["tokens"]), int(piece["left_out"])
        self.is_shortened = bool(piece["shortened"])
        self.tokens_per_second = piece["tokens"] / piece["seconds"] if piece["seconds"] else None
        self.messages.append({"role": "assistant", "content": answer})

    def _send(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"messages": self.messages, **self._request}, ensure_ascii=False) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def stop(self) -> None:
        """End the model's process from another thread; a caller that waits for its answer gets a ModelError."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the model's process; the next question starts it again, and the conversation is remembered."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            safe_child.command("engine.talk.speaker", str(self.folder), *self._trust),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**SLEEPING_THREADS, **safe_child.environment()},
        )
        # A thread reads its standard error all the time: a full pipe would stop it.
        self._complaints = collections.deque(maxlen=_KEPT_LINES)
        self._listener = threading.Thread(target=_keep, args=(self._process.stderr, self._complaints), daemon=True)
        self._listener.start()
        self.has_template = bool(self._read(self._process).get("has_template"))
        return self._process

    def _end(self) -> None:
        """Wait for the end of the process, and read its last lines."""
        process, self._process = self._process, None
        assert process is not None
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # a request that it did not read
                stream.close()
        process.wait()
        self._listener.join()

    def _read(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def _ended(self) -> ModelError:
        self._end()
        last = [line for line in self._complaints if line.strip()][-1:] or ["It gave no reason."]
        return ModelError(
            f"The model in {self.folder} did not answer.",
            last[0].strip(),
            "If memory is short, close other programs; else check the folder with AutoModelForCausalLM.",
        )


def _keep(stream: IO[str], lines: collections.deque[str]) -> None:
    with stream:
        lines.extend(stream)

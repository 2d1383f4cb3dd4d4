"""llama.cpp beside the tests: it loads GGUF files in a process of its own and tells its logits, tokens and prompts.

    answers = ask([{"file": "model.gguf", "ids": [5, 7], "texts": ["a text"]}])

``TINYDISTILL_LLAMA_CPP`` names a Python that has ``llama-cpp-python``; without it, the tests' own Python is tried. No
index has a wheel of it for every machine, and pip then compiles it, so the tests are skipped where neither has it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import scratch

# Keys and values are cached as float32, so that what differs is the file or llama.cpp's arithmetic on its types.
_PROGRAM = r"""
import ctypes, json, sys
import numpy, llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

jobs, out = json.loads(open(sys.argv[1]).read()), {}
for number, job in enumerate(jobs):
    room = job.get("room") or max(64, len(job.get("ids", ())) + job.get("new", 0) + 8)
    model = llama_cpp.Llama(job["file"], n_ctx=room, n_batch=room, n_ubatch=room, logits_all=True, verbose=True,
                            type_k=0, type_v=0, n_threads=1, n_threads_batch=1, use_mmap=True)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    told = {
        "texts": [model.tokenize(text.encode(), add_bos=True, special=True) for text in job.get("texts", ())],
        "bos": llama_cpp.llama_vocab_bos(vocab),
        "eos": llama_cpp.llama_vocab_eos(vocab),
        "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
        "adds_eos": bool(llama_cpp.llama_vocab_get_add_eos(vocab)),
        "ends": [i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, i)],
        "words": model.n_vocab(),
        "metadata": model.metadata,
        "template": (llama_cpp.llama_model_chat_template(model.model, None) or b"").decode(),
    }
    if job.get("ids"):
        model.eval(job["ids"])
        numpy.save(sys.argv[2] + f".{number}", model.scores[: len(job["ids"])])
        found = []
        for _ in range(job.get("new", 0)):
            found.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(found[-1:])
        told["new"] = found
    if job.get("messages"):
        piece = lambda i: model.detokenize([i], special=True).decode() if i >= 0 else ""
        words = Jinja2ChatFormatter(told["template"], eos_token=piece(told["eos"]), bos_token=piece(told["bos"]))
        told["prompt"] = words(messages=job["messages"]).prompt
        model.reset()
        said = model.create_chat_completion(job["messages"], max_tokens=job.get("most", 1), temperature=0)
        told["answer"] = said["choices"][0]["message"]["content"]
        told["finish"] = said["choices"][0]["finish_reason"]
    out[number] = told
    model.close()
open(sys.argv[2], "w").write(json.dumps(out))
"""


@functools.cache
def python_with_llama_cpp() -> str:
    """A Python that imports llama_cpp."""
    python = os.environ.get("TINYDISTILL_LLAMA_CPP") or sys.executable
    done = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True, timeout=100)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        if os.environ.get("TINYDISTILL_LLAMA_CPP"):
            pytest.fail(f"TINYDISTILL_LLAMA_CPP={python} cannot import llama_cpp: {last}")
        pytest.skip(f"llama.cpp is not installed: TINYDISTILL_LLAMA_CPP=PYTHON names a Python that has it ({last})")
    return python


def ask(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Load files in llama.cpp, one after the other.

    Args:
        jobs: ``file``, and any of ``ids`` (evaluated; ``new`` further ones are chosen greedily), ``texts`` (tokenized
            with special tokens and the begin-of-text token that the file asks for), ``messages`` (a conversation,
            answered greedily with at most ``most`` tokens) and ``room`` (tokens of the context).

    Returns:
        For each what llama.cpp knows of the vocabulary, and ``logits`` [ids, vocabulary] float32, ``new``, ``texts``,
        ``prompt``, ``answer``.
    """
    python = python_with_llama_cpp()
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        (Path(place) / "jobs").write_text(json.dumps([{**job, "file": str(job["file"])} for job in jobs]))
        done = subprocess.run(
            [python, "-c", _PROGRAM, "jobs", "out"], capture_output=True, text=True, timeout=500, cwd=place
        )
        assert done.returncode == 0, f"llama.cpp ended with {done.returncode}: {done.stderr[-3000:]}"
        told = json.loads((Path(place) / "out").read_text())
        for number, job in enumerate(jobs):
            if job.get("ids"):
                told[str(number)]["logits"] = np.load(Path(place) / f"out.{number}.npy")
    return [told[str(number)] for number in range(len(jobs))]

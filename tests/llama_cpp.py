"""llama.cpp beside the tests: its server loads GGUF files in a process of its own and tells logits, tokens and prompts.

    answers = ask([{"file": "model.gguf", "ids": [5, 7], "texts": ["a text"]}])

`xllamacpp <https://pypi.org/project/xllamacpp/>`_ has wheels with llama.cpp inside (``pip install xllamacpp``, 34 MB).
The tests' own Python is tried, or the one that ``TINYDISTILL_LLAMA_CPP`` names; without it the tests are skipped.
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

# Keys and values are cached as float32, and attention is computed by plain products, so that what differs is the file
# or llama.cpp's arithmetic on its types.
_PROGRAM = r"""
import json, sys, urllib.request
import numpy, xllamacpp


class Llama:
    "A file in llama.cpp's server."

    def __init__(self, file, room):
        settings = xllamacpp.CommonParams()
        settings.model.path = file
        settings.n_gpu_layers, settings.n_parallel, settings.warmup, settings.use_jinja = 0, 1, False, True
        settings.n_ctx = settings.n_batch = settings.n_ubatch = room
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(settings)
        self.x = self.ask("/tokenize", content="x")["tokens"][-1]

    def ask(self, path, **words):
        data = json.dumps(words).encode() if words else None
        asked = urllib.request.Request(self.server.listening_address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            return json.load(answer)

    def ids(self, text):
        return self.ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def complete(self, ids, most, **words):
        return self.ask("/completion", prompt=ids, n_predict=most, temperature=0, return_tokens=True, **words)

    def log_probs(self, ids, words):
        "Those of the token after the ids [vocabulary] float32. They are told beside a token that has text of its own."
        (first,) = self.complete(ids, 1, n_probs=words, logit_bias=[[self.x, 1e6]])["completion_probabilities"]
        found = numpy.full(words, numpy.nan, numpy.float32)
        for one in first["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found


jobs, out = json.loads(open(sys.argv[1]).read()), {}
for number, job in enumerate(jobs):
    ids = job.get("ids", [])
    model = Llama(job["file"], job.get("room") or max(64, len(ids) + job.get("new", 0) + 8))
    known, one = model.ask("/props"), model.ids("x")
    words = model.ask("/v1/models")["data"][0]["meta"]["n_vocab"]
    single = lambda text: model.ask("/tokenize", content=text, parse_special=True)["tokens"][-1] if text else None
    told = {
        "texts": [model.ids(text) for text in job.get("texts", ())],
        "bos": single(known["bos_token"]),
        "eos": single(known["eos_token"]),
        "words": words,
        "template": known["chat_template"],
        "ends": [i for i in job.get("ends", ()) if model.complete([9], 2, logit_bias=[[i, 1e6]])["stop_type"] == "eos"],
    }
    told["adds_bos"], told["adds_eos"] = one[0] == told["bos"], one[-1] == told["eos"]
    if ids:
        lengths = range(max(1, len(ids) - job["positions"] + 1), len(ids) + 1)
        found = [model.log_probs(ids[:length], words) for length in lengths]
        numpy.save(sys.argv[2] + f".{number}", numpy.stack(found))
        told["new"] = model.complete(ids, job["new"])["tokens"] if job.get("new") else []
    if job.get("messages"):
        told["prompt"] = model.ids(model.ask("/apply-template", messages=job["messages"])["prompt"])
        said = model.ask("/v1/chat/completions", messages=job["messages"], max_tokens=job.get("most", 1), temperature=0)
        told["answer"] = said["choices"][0]["message"]["content"]
    out[number] = told
    del model
open(sys.argv[2], "w").write(json.dumps(out))
"""


@functools.cache
def python_with_llama_cpp() -> str:
    """A Python that imports xllamacpp."""
    python = os.environ.get("TINYDISTILL_LLAMA_CPP") or sys.executable
    done = subprocess.run([python, "-c", "import xllamacpp"], capture_output=True, text=True, timeout=100)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        if os.environ.get("TINYDISTILL_LLAMA_CPP"):
            pytest.fail(f"TINYDISTILL_LLAMA_CPP={python} cannot import xllamacpp: {last}")
        pytest.skip(f"llama.cpp is not installed: `pip install xllamacpp` has it ({last})")
    return python


def ask(jobs: list[dict[str, Any]], positions: int | None = None) -> list[dict[str, Any]]:
    """Load files in llama.cpp, one after the other.

    Args:
        jobs: ``file``, and any of ``ids`` (evaluated; at most ``new`` further ones are chosen greedily), ``texts``
            (tokenized with special tokens and the begin-of-text token that the file asks for), ``ends`` (ids which may
            end an answer), ``messages`` (a conversation, answered greedily with at most ``most`` tokens) and ``room``
            (tokens of the context).
        positions: the last ones of ``ids`` whose probabilities are told; None is all of them.

    Returns:
        For each what llama.cpp knows of the vocabulary, and ``log_probs`` [positions, vocabulary] float32, ``new``,
        ``texts``, those of ``ends`` at which it stops, the ids of the ``prompt``, ``answer``.
    """
    python = python_with_llama_cpp()
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        given = [{**job, "file": str(job["file"]), "positions": positions or len(job.get("ids", ()))} for job in jobs]
        (Path(place) / "jobs").write_text(json.dumps(given))
        done = subprocess.run(
            [python, "-c", _PROGRAM, "jobs", "out"], capture_output=True, text=True, timeout=500, cwd=place
        )
        assert done.returncode == 0, f"llama.cpp ended with {done.returncode}: {done.stderr[-3000:]}"
        told = json.loads((Path(place) / "out").read_text())
        for number, job in enumerate(jobs):
            if job.get("ids"):
                told[str(number)]["log_probs"] = np.load(Path(place) / f"out.{number}.npy")
    return [told[str(number)] for number in range(len(jobs))]

"""Does a chat student answer in its template, and stop by itself?

    python -m tests.benchmarks.quality.chat --teacher FOLDER --work FOLDER --layers 20 --out FILE.json

A chat teacher answers up to 471 questions of many kinds; the answers that it ended itself are used. A run cuts a
student from the teacher and trains it on 300 of the conversations, with the settings of the planner unless others are
given behind ``--``. The 30 kept questions are asked of teacher and student alike, the likeliest token each time: how
many answers end by themselves, how long they are, how many of the teacher's first words the student says too, and how
many of the questions that have one right answer get it. Questions and answers are the same every time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

_TRAINED, _KEPT, _MOST_TOKENS, _TOGETHER = 300, 30, 96, 96

_CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Germany": "Berlin", "Egypt": "Cairo",
    "Russia": "Moscow", "China": "Beijing", "Greece": "Athens", "Portugal": "Lisbon", "Poland": "Warsaw",
    "Austria": "Vienna", "Norway": "Oslo", "Sweden": "Stockholm", "Ireland": "Dublin", "Kenya": "Nairobi",
    "Cuba": "Havana", "Peru": "Lima", "India": "New Delhi", "Turkey": "Ankara",
}  # fmt: skip
_THINGS = (
    "rain", "a bicycle", "bread", "the moon", "a volcano", "a library", "a bee", "a river", "electricity", "a map",
    "music", "an island", "a clock", "soap", "a magnet", "a forest", "salt", "a bridge", "snow", "a seed", "glass",
    "a camera", "the sun", "a whale", "paper",
)  # fmt: skip
_KINDS = (
    "fruits", "animals of the sea", "colours", "tools", "musical instruments", "sports", "trees", "countries of Europe",
    "planets", "things in a kitchen", "jobs", "birds", "flowers", "vegetables", "pieces of furniture",
)  # fmt: skip
_OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "early": "late", "light": "dark", "open": "closed",
              "fast": "slow", "happy": "sad", "full": "empty", "young": "old"}  # fmt: skip
_ADVICE = (
    "sleep better", "learn a language", "save money", "write a letter", "make tea", "stay healthy", "plant a tree",
    "find a friend", "read more books", "cook rice", "clean a window", "prepare for an exam", "pack a suitcase",
    "be on time", "speak in public", "draw a face", "train a dog", "remember names", "wake up early", "fix a flat tyre",
)  # fmt: skip


def questions() -> list[tuple[str, str | None]]:
    """All questions in a fixed random order, each with a word that a right answer has, where there is one."""
    asked: list[tuple[str, str | None]] = []
    for country, capital in _CAPITALS.items():
        asked.append((f"What is the capital of {country}?", capital))
        asked.append((f"In one sentence, what is {country} known for?", None))
        asked.append((f"Name a city in {country} that is not {capital}.", None))
        asked.append((f"Which continent is {country} in?", None))
    for thing in _THINGS:
        asked.append((f"What is {thing}? Answer in one sentence.", None))
        asked.append((f"Write a short sentence about {thing}.", None))
        asked.append((f"Why is {thing} useful to people? Answer briefly.", None))
        asked.append((f"Where can I find {thing}?", None))
        asked.append((f"Explain {thing} to a child in two sentences.", None))
    for kind in _KINDS:
        asked += [(f"Name {count} {kind}.", None) for count in ("two", "three", "four", "five")]
    for word, opposite in _OPPOSITES.items():
        asked.append((f"What is the opposite of {word}?", opposite))
        asked += [(f"Use the word {each} in a sentence.", each) for each in (word, opposite)]
    for aim in _ADVICE:
        asked += [(f"How can I {aim}? Give me one tip.", None), (f"Tell me briefly how to {aim}.", None)]
        asked.append((f"Why should I {aim}? One sentence, please.", None))
    asked += [(f"What is {one} plus {other}?", str(one + other)) for one in range(1, 10) for other in (2, 5, 7)]
    asked += [
        (f"Which letter comes after {letter} in the alphabet?", chr(ord(letter) + 1)) for letter in "ABCDEFGHKLMPRS"
    ]
    random.Random(0).shuffle(asked)
    more: list[tuple[str, str | None]] = []
    for aim in _ADVICE:
        more += [(f"What do I need to {aim}?", None), (f"Is it hard to {aim}? Answer in one sentence.", None)]
    more += [(f"What language do people speak in {country}?", None) for country in _CAPITALS]
    more += [(f"Choose one of these and say why: {kind}.", None) for kind in _KINDS]
    random.Random(1).shuffle(more)
    return asked + more


def answers(folder: Path, asked: list[str], batch: int = 48) -> list[tuple[str, int, bool]]:
    """A model's answers: the text, its tokens, and whether it ended by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    order = sorted(range(len(asked)), key=lambda place: len(asked[place]))
    found: dict[int, tuple[str, int, bool]] = {}
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": asked[place]}], tokenize=False, add_generation_prompt=True
            )
            for place in places
        ]
        given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            made = model.generate(**given, max_new_tokens=_MOST_TOKENS, do_sample=False, pad_token_id=pad)
        for place, row in zip(places, made[:, given.input_ids.shape[1] :].tolist(), strict=True):
            end = next((number for number, token in enumerate(row) if token in ends), None)
            said = row if end is None else row[:end]
            found[place] = tokenizer.decode(said, skip_special_tokens=True).strip(), len(said), end is not None
    return [found[place] for place in range(len(asked))]


def make_conversations(teacher: Path, work: Path) -> tuple[Path, list[tuple[str, str | None, str]]]:
    """The file to train on, and the kept questions with their right word and the teacher's answer."""
    path = work / "answers.json"
    rows: list[list[Any]] = json.loads(path.read_text()) if path.exists() else []
    asked = questions()
    while len(whole := [row for row in rows if row[4] and row[2]]) < _TRAINED + _KEPT and len(rows) < len(asked):
        some = asked[len(rows) : len(rows) + _TOGETHER]
        given = answers(teacher, [question for question, _ in some])
        rows += [[*question, *answer] for question, answer in zip(some, given, strict=True)]
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=0))
    if len(whole) < _TRAINED + _KEPT:
        raise SystemExit(f"The teacher ended {len(whole)} answers by itself; {_TRAINED + _KEPT} are needed.")
    kept = [(question, right, answer) for question, right, answer, _, _ in whole[:_KEPT]]
    data = work / "conversations.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for question, _, answer, _, _ in whole[_KEPT : _KEPT + _TRAINED]:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return data, kept


def judged(given: list[tuple[str, int, bool]], kept: list[tuple[str, str | None, str]]) -> dict[str, Any]:
    """Score the answers to the kept questions."""
    right = [word.lower() in text.lower() for (text, _, _), (_, word, _) in zip(given, kept, strict=True) if word]
    first = [_shared_words(text, answer) for (text, _, _), (_, _, answer) in zip(given, kept, strict=True)]
    return {
        "stopped_by_itself": sum(ended for _, _, ended in given),
        "questions": len(given),
        "median_tokens": statistics.median(tokens for _, tokens, _ in given),
        "right": sum(right),
        "with_a_right_answer": len(right),
        "mean_first_words_of_the_teacher": statistics.mean(first),
        "answers": [text for text, _, _ in given],
    }


def _shared_words(one: str, other: str) -> int:
    pairs = zip(one.split(), other.split(), strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one.split()), len(other.split())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the conversations and the run")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--name", default="run", help="of the run's folder in --work")
    parser.add_argument("--out", type=Path)
    parser.add_argument("settings", nargs="*", help="of the run, behind --")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data, kept = make_conversations(arguments.teacher, arguments.work)
    asked = [question for question, _, _ in kept]
    run = arguments.work / arguments.name
    began = time.monotonic()
    if not (run / "student" / "config.json").exists():
        subprocess.run(
            [
                sys.executable, "-m", "engine.cli.distill", "--teacher", str(arguments.teacher),
                "--student", "from-teacher", "--student_layers", str(arguments.layers), "--data", str(data),
                "--output_dir", str(run), "--plain", *arguments.settings,
            ],
            check=True,
        )  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    result = {
        "question": (__doc__ or "").splitlines()[0],
        "setting": {"teacher": arguments.teacher.name, "layers": arguments.layers, "settings": arguments.settings},
        "run": {
            key: report.get(key)
            for key in ("teacher", "student_before", "student_after", "gap_closed", "chance", "steps", "tokens")
        },
        "run_seconds": time.monotonic() - began,
        "generation_config": json.loads((run / "student" / "generation_config.json").read_text()),
        "asked": asked,
        "teacher": judged(answers(arguments.teacher, asked), kept),
        "student": judged(answers(run / "student", asked), kept),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "date": time.strftime("%Y-%m-%d"),
    }
    for side in ("teacher", "student"):
        figures = {key: value for key, value in result[side].items() if key != "answers"}  # type: ignore[attr-defined]
        print(side, json.dumps(figures))
    for question, *said in zip(asked, result["teacher"]["answers"], result["student"]["answers"], strict=True):  # type: ignore[index]
        print(f"- {question}\n    teacher: {said[0]!r}\n    student: {said[1]!r}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""A model's process without a model: ``python -m tests.tinydistill_tui.speaker FOLDER``; the folder's name answers.

It writes when it begins and when it ends into ``$SPEAKERS``, so that a test can see how many were there together.
"""

import json
import os
import sys
import time
from pathlib import Path

name = Path(sys.argv[1]).name


def tell(word: str) -> None:
    with open(os.environ["SPEAKERS"], "a") as file:
        file.write(f"{word} {os.getpid()} {name}\n")


def say(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


tell("began")
say({"ready": True, "has_template": False})
for line in sys.stdin:
    words = json.loads(line)["messages"][-1]["content"]
    if name == os.environ.get("SILENT"):
        time.sleep(600)
    for piece in (f"{name} ", "says ", words):
        say({"text": piece})
    say({"tokens": 30, "seconds": 2.0, "whole": True, "left_out": 0, "shortened": False})

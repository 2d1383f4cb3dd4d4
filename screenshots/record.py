"""Record the wizard as one SVG animation: from its first screen to a plan whose bars move.

    python screenshots/record.py [--run RUN_DIR] [--out FILE]

Each frame is a screen of the running app, as a terminal of 80 columns shows it; keys are pressed, nothing is drawn by
hand. With ``--run`` the run's training and its result follow. A reader who asks for less motion sees the last frame.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from make import BUDGET, FONTS, home, settled, shows  # noqa: E402  (beside this file)

SIZE = (80, 24)
SECONDS = 2.6
MOST_BYTES = 500_000
# Keys that are pressed before each frame, and how long it is shown in units of SECONDS.
KEYS: list[tuple[tuple[str, ...], float]] = [
    (("tab", *BUDGET, "enter"), 1.5),
    (("enter",), 1.5),
    (("enter",), 1.5),
    (("enter",), 1.5),
    (("down", "down", "down"), 1.0),
    (("right",), 0.7),
    (("right",), 0.7),
    (("right",), 1.0),
    (("question_mark",), 1.5),
]


def main() -> None:
    """Write the animation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run, whose end is shown too")
    parser.add_argument("--out", type=Path, default=HERE / "wizard.svg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tinydistill-") as folder, home(Path(folder) / "ada") as ada:
        frames = asyncio.run(wizard())
        if arguments.run:
            finished = ada / ".local/share/tinydistill/runs/python-docs"
            shutil.copytree(arguments.run, finished)
            frames.append((asyncio.run(result(finished)), 2 * SECONDS))
    drawn = animation(frames)
    assert len(drawn.encode()) < MOST_BYTES, f"{len(drawn.encode()):,} bytes are too many for a README"
    arguments.out.write_text(drawn, encoding="utf-8")


async def wizard() -> list[tuple[str, float]]:
    """The frames of the wizard, each with its seconds."""
    from tinydistill_tui.app import TinyDistillApp

    frames = []
    app = TinyDistillApp(options={"no_animation": True})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        for number, (keys, units) in enumerate(KEYS):
            await pilot.press(*keys)
            if number == 2:
                await shows(pilot, "First")
            await settled(pilot)
            frames.append((app.export_screenshot(title="tinydistill-tui"), units * SECONDS))
        app.exit()
    return frames


async def result(finished: Path) -> str:
    """The end of a run."""
    from tinydistill_tui.app import TinyDistillApp

    app: Any = TinyDistillApp(attach=finished, options={"no_animation": True})
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        drawn: str = app.export_screenshot(title="tinydistill-tui")
        app.exit()
    return drawn


def animation(frames: list[tuple[str, float]]) -> str:
    """One SVG that shows the frames one after the other, for ever.

    Args:
        frames: whole SVG documents of one size, and how many seconds each is seen.
    """
    box = re.search(r'viewBox="([^"]+)"', frames[0][0])
    assert box is not None
    whole = sum(seconds for _, seconds in frames)
    styles, bodies, begun = [], [], 0.0
    for number, (document, seconds) in enumerate(frames):
        start, end = (100 * moment / whole for moment in (begun, begun + seconds))
        begun += seconds
        hidden = f"0%{{opacity:0}}{start:.3f}%{{opacity:1}}" if number else "0%{opacity:1}"
        styles.append(
            f"@keyframes f{number}{{{hidden}{end:.3f}%{{opacity:0}}100%{{opacity:0}}}}"
            f".f{number}{{animation:f{number} {whole:.2f}s step-end infinite}}"
        )
        bodies.append(f'<g class="f f{number}">{_slim(document)}</g>')
    styles.append(
        f".f{{opacity:0}}@media (prefers-reduced-motion:reduce){{.f{{animation:none}}.f{len(frames) - 1}{{opacity:1}}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}"><style>{"".join(styles)}</style>'
        f"{''.join(bodies)}</svg>\n"
    )


def _slim(document: str) -> str:
    """A frame without the fonts that it would load, and without blanks between its elements."""
    document = re.sub(r"@font-face \{.*?\}\s*", "", document, flags=re.DOTALL)
    document = document.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    document = re.sub(r"<!--.*?-->", "", document, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", document).strip()


if __name__ == "__main__":
    main()

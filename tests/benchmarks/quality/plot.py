"""The result as a picture: share of the gap that is closed against bytes a token, as plain SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 400, 60, 40, 20, 50
_COLOURS = {"unbiased": "#1f6feb", "topk": "#d1242f", "ghost": "#bf8700", "blend": "#1a7f37"}
_LOWEST = -0.6  # what is below is drawn at the edge, with its figure


def write_plot(entries: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw every arm that has a cache and a share; the bar is from the lowest to the highest seed."""
    drawn = [entry for entry in entries if "bytes_per_token" in entry and "kl_gap_closed" in entry]
    drawn = [entry for entry in drawn if entry["kd_weight"] == 1 and not entry["fresh"]]
    if not drawn:
        return
    largest = 1.1 * max(entry["bytes_per_token"] for entry in drawn)

    def x(value: float) -> float:
        return _LEFT + value / largest * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return _TOP + (1.1 - max(share, _LOWEST)) / (1.1 - _LOWEST) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{title}</text>',
    ]
    for tenth in range(-5, 11, 5):
        share = tenth / 10
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for step in range(0, int(largest) + 1, 10):
        parts.append(f'<text x="{x(step):.1f}" y="{_HEIGHT - 30}" text-anchor="middle">{step}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">'
        "bytes a token · filled: hold-out loss, hollow: KL to the teacher</text>"
    )
    for entry in drawn:
        colour = _COLOURS[entry["target"]]
        for name, is_filled, shift in (("loss_gap_closed", True, -3), ("kl_gap_closed", False, 3)):
            share, place = entry[name], x(entry["bytes_per_token"]) + shift
            parts.append(
                f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{y(share["lowest"]):.1f}" y2="{y(share["highest"]):.1f}" '
                f'stroke="{colour}"/>'
            )
            inside = colour if is_filled else "#ffffff"
            parts.append(
                f'<circle cx="{place:.1f}" cy="{y(share["mean"]):.1f}" r="4" stroke="{colour}" fill="{inside}"><title>'
                f"{entry['arm']}: {share['mean']:.0%}</title></circle>"
            )
    for place, (target, colour) in enumerate(_COLOURS.items()):
        parts.append(f'<circle cx="{440 + 70 * place}" cy="18" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{448 + 70 * place}" y="22">{target}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")

"""From trainings to shares: how far each arm goes from labels only to the full distribution, and how sure that is."""

from __future__ import annotations

from statistics import mean
from typing import Any

from tests.benchmarks.quality.arms import DRAWS_APART, FULL, LABELS, Arm

_FIGURES = ("holdout_loss", "kl_to_teacher", "ece", "top1_agreement")


def summarise(
    arms: list[Arm], trainings: dict[str, dict[str, float]], caches: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """One entry for each arm that has finished trainings.

    Args:
        arms: all of the setting.
        trainings: figures by ``name/seed``.
        caches: bytes and heads by ``kind-size-seed``.
    """
    found = []
    for arm in arms:
        seeds = [key.rpartition("/")[2] for key in trainings if key.rpartition("/")[0] == arm.name]
        seeds = sorted(seed for seed in seeds if f"{LABELS.name}/{seed}" in trainings)
        if not seeds:
            continue
        runs = [trainings[f"{arm.name}/{seed}"] for seed in seeds]
        entry: dict[str, Any] = {"arm": arm.name, "records": arm.records, "size": arm.size, "target": arm.target}
        entry |= {"kd_weight": arm.kd_weight, "fresh": arm.fresh, "seeds": len(seeds)}
        for name in _FIGURES:
            entry[name] = spread([run[name] for run in runs])
        for name, figure in (("loss_gap_closed", "holdout_loss"), ("kl_gap_closed", "kl_to_teacher")):
            shares = [
                (trainings[f"{LABELS.name}/{seed}"][figure] - run[figure])
                / (trainings[f"{LABELS.name}/{seed}"][figure] - trainings[f"{FULL.name}/{seed}"][figure])
                for seed, run in zip(seeds, runs, strict=True)
                if f"{FULL.name}/{seed}" in trainings
            ]
            if shares:
                entry[name] = spread(shares)
        cache = caches.get(f"{arm.records}-{arm.size}-{seeds[0]}")
        if cache is not None:
            draws = {
                int(key.rpartition("-")[2]) // DRAWS_APART
                for key in caches
                if key.startswith(f"{arm.kind}-{arm.size}-")
            }
            factor = len(draws) if arm.fresh else 1
            entry |= {
                "bytes_per_token": factor * cache["bytes_per_token"],
                "bytes_at_152k": factor * cache["bytes_at_152k"],
                "mean_heads": cache["mean_heads"],
                "mean_tail_mass": cache["mean_tail_mass"],
            }
        found.append(entry)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Mean, lowest and highest."""
    return {"mean": mean(values), "lowest": min(values), "highest": max(values)}


def table(entries: list[dict[str, Any]]) -> str:
    """A Markdown table for a user and for the README."""
    lines = [
        "| learns from | bytes a token | at 152k, most | hold-out loss | KL | ECE | loss gap closed | KL gap closed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        size = f"{entry['bytes_per_token']:.1f}" if "bytes_per_token" in entry else "–"
        large = f"{entry['bytes_at_152k']:.0f}" if "bytes_at_152k" in entry else "–"
        loss, kl, ece = (entry[name]["mean"] for name in _FIGURES[:3])
        shares = " | ".join(_share(entry.get(name)) for name in ("loss_gap_closed", "kl_gap_closed"))
        lines.append(f"| {entry['arm']} | {size} | {large} | {loss:.3f} | {kl:.3f} | {ece:.3f} | {shares} |")
    return "\n".join(lines)


def _share(values: dict[str, float] | None) -> str:
    if values is None:
        return "–"
    return f"{values['mean']:.0%} ({values['lowest']:.0%} to {values['highest']:.0%})"

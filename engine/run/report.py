"""The report of a finished run: ``report.json`` for programs, ``report.md`` for users.

It is made from what the phases left behind and from the events; it measures nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from engine.channel.events import Event, read_events
from engine.disk.files import make_folder, write_atomic
from engine.format import format_bytes, format_duration, format_number, share_in_words
from engine.machine.device import Device
from engine.phase_kinds import PHASES
from engine.planner.share import forget_slow_rates, gemm_shares
from engine.run import afterwards
from engine.run.folder import Run
from engine.run.pictures import draw_all
from engine.student.adapter_words import adapter_in_words
from engine.student.verdict import details, gap_of, headline, shown_kl


@dataclass(frozen=True)
class Measure:
    """One row of the before/after table."""

    key: str
    title: str
    percent: bool = False

    def shown(self, value: float | None) -> str:
        """The value as a user reads it; a dash where there is none."""
        if value is None:
            return "–"
        value = shown_kl(value) if self.key == "kl_to_teacher" else value
        if self.percent:
            return f"{value:.1%}"
        return format_number(value, 2) if self.key == "perplexity" else f"{value:.3f}"


MEASURES = (
    Measure("holdout_loss", "loss"),
    Measure("perplexity", "perplexity"),
    Measure("bits_per_byte", "bits a byte"),
    Measure("kl_to_teacher", "KL to the teacher"),
    Measure("top1_agreement", "top-1 agreement", percent=True),
    Measure("ece", "calibration error"),
)


def write(run: Run) -> dict[str, Any]:
    """Build the report from the run's folder and write it with its pictures, each file whole."""
    report = build(run)
    rates = {name: report["phases"][name]["tokens_per_second"] for name in ("teacher", "student")}
    forget_slow_rates(run.settings, run.student_path, rates)
    write_atomic(run.report_json, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    pictures = draw_all(read_events(run.events_path), report)
    for name, picture in pictures.items():
        make_folder(run.pictures_path, parents=False)
        write_atomic(run.pictures_path / name, picture)
    write_atomic(run.report_md, in_words(report, run.name, pictures=sorted(pictures)))
    write_atomic(run.next_txt, afterwards.in_words(report, run.path))
    return report


def build(run: Run) -> dict[str, Any]:
    """The report as it stands in ``report.json``; keys as the README lists them."""
    prepare = run.result("prepare") or {}
    teacher = run.result("teacher") or {}
    student = run.result("student") or {}
    spent = _spent(read_events(run.events_path))
    predicted = run.info["predicted"]
    results = {"teacher": teacher, "student": student}
    rates = {name: result.get("tokens_per_second") for name, result in results.items()}
    shares = gemm_shares(run.settings, run.student_path, rates)
    phases = {
        name: {
            "seconds": round(spent[name]["seconds"], 3),
            "tokens": result.get("tokens"),
            "tokens_per_second": result.get("tokens_per_second"),
            "predicted_peak_bytes": predicted.get(name, {}).get("peak_bytes"),
            "peak_bytes": spent[name]["peak_bytes"],
            "device_peak_bytes": result.get("device_peak_bytes"),
            "gemm_share": shares[name],
            "overhead_seconds": _overhead(spent[name]["seconds"], result.get("working_seconds")),
        }
        for name, result in results.items()
    }
    return {
        "teacher": student["teacher"],
        "student_before": student["student_before"],
        "student_after": student["student_after"],
        "gap_closed": gap_of(student),
        "chance": student.get("chance"),
        "intervals": student.get("intervals", {}),
        "holdout_documents": student.get("holdout_documents"),
        "training": {name: student.get(name) for name in ("steps", "skipped_steps", "best_step")},
        "compare": student.get("compare", {}),
        "adapter": student.get("adapter"),
        "cut": (teacher.get("cut") or {}).get("cuts", []),
        **({"quantization_cost": cost} if (cost := teacher.get("quantization_cost")) else {}),
        "cache": teacher["cache"],
        "phases": phases,
        "samples": student["samples"],
        "data": _data(prepare.get("data", {})),
        "world": student.get("world") or {"ranks": 1, "hosts": 1},
        "config": run.info["settings"],
        "choices": run.info["choices"],
        "versions": run.info["versions"],
        "hardware": run.info["hardware"],
    }


def _overhead(seconds: float, working_seconds: float | None) -> float | None:
    """Return a phase's seconds outside of scoring or steps: start, loading, evaluations, checkpoints, samples."""
    return None if working_seconds is None else round(max(0.0, seconds - working_seconds), 3)


def cost_in_words(phase: dict[str, Any]) -> str:
    """Time and memory of a phase, for a user; of a teacher that had nothing to score, why there is none.

    Args:
        phase: its entry in the report.
    """
    if phase.get("tokens") == 0:
        return "every row had its records already"
    return f"{format_duration(phase.get('seconds'))}, peak {_peak(phase)}"


def _peak(phase: dict[str, Any]) -> str:
    """Most memory of a phase beside what was predicted; on a GPU that is the GPU's, and main memory comes to it."""
    predicted = f"(predicted {format_bytes(phase.get('predicted_peak_bytes'))})"
    if phase.get("device_peak_bytes") is None:
        return f"{format_bytes(phase.get('peak_bytes'))} {predicted}"
    return (
        f"{format_bytes(phase['device_peak_bytes'])} on the GPU {predicted}, "
        f"{format_bytes(phase.get('peak_bytes'))} of main memory"
    )


def speed_in_words(phase: dict[str, Any], unit: str) -> str:
    """How well a phase used the machine, for a user; empty where nothing is known.

    Args:
        phase: its entry in the report.
        unit: "processor" or "GPU".
    """
    said = []
    if share := phase.get("gemm_share"):
        said.append(f"{share_in_words(share)} of what this {unit} can do")
    if (beside := phase.get("overhead_seconds")) is not None:
        said.append(f"start, evaluations and checkpoints took {format_duration(beside)}")
    return "; ".join(said)


def compute_unit(report: dict[str, Any]) -> str:
    """Return the device of the phases as a word."""
    device = (report.get("config") or {}).get("device") or "cpu"
    return "processor" if Device.of(str(device)).is_host else "GPU"


def _data(prepared: dict[str, Any]) -> dict[str, Any]:
    """Describe the data that was read and left out."""
    data = {key: value for key, value in prepared.items() if key not in ("skipped", "left_out", "read_as")}
    told = " ".join(filter(None, (prepared.get("left_out", ""), *prepared.get("read_as", ()))))
    return {**data, "left_out": prepared.get("skipped", {}), "told": told}


def _or_dash(value: float | None, shown: Callable[[float], str]) -> str:
    return "–" if value is None else shown(value)


def one_line(text: str | None) -> str:
    """A sample's text on one line; a dash where there is none: the teacher was not loaded in this run."""
    return "–" if text is None else " ".join(text.split())


def in_words(report: dict[str, Any], name: str, *, pictures: Iterable[str] = ()) -> str:
    """``report.md``: the same as in ``report.json``, for a user.

    Args:
        report: as in ``report.json``.
        name: of the run.
        pictures: names of the files in the run's folder ``pictures/``.
    """
    people = ("teacher", "student_before", "student_after")
    lines = [
        f"# {name}",
        "",
        " ".join([headline(report), *details(report)]),
        "",
        "| hold-out | teacher | student before | student after |",
        "|---|---:|---:|---:|",
        *(
            f"| {measure.title} | " + " | ".join(measure.shown(report[who].get(measure.key)) for who in people) + " |"
            for measure in MEASURES
        ),
        "",
        *_cuts(report),
        "| phase | time | overhead | tokens a second | share of the machine | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {phase} | {format_duration(figures['seconds'])} | "
            f"{_or_dash(figures['overhead_seconds'], format_duration)} | "
            f"{_or_dash(figures['tokens_per_second'], '{:,.0f}'.format)} | "
            f"{_or_dash(figures['gemm_share'], share_in_words)} | "
            f"{_peak(figures)} |"
            for phase, figures in report["phases"].items()
        ),
        "",
        f"Records: {report['cache']['tokens']:,} tokens in {format_bytes(report['cache']['bytes'])}, "
        f"{report['cache']['bytes_per_token']:.1f} bytes a token, {report['cache']['shards']} shards.",
        "",
        *([f"{adapter_in_words(report['adapter'])}", ""] if report.get("adapter") else []),
        *([f"Of the text: {report['data']['told']}", ""] if report.get("data", {}).get("told") else []),
        *(line for name in pictures for line in (f"![{name.removesuffix('.svg')}](pictures/{name})", "")),
        "## Samples",
        "",
    ]
    for sample in report["samples"]:
        lines += [f"- **{key}**: {one_line(sample[key])}" for key in ("prompt", "teacher", "before", "after")] + [""]
    lines += ["## Settings", "", "| setting | value | by | reason |", "|---|---|---|---|"]
    lines += [f"| {c['field']} | {c['value']} | {c['by']} | {c['reason']} |" for c in report["choices"]]
    return "\n".join(lines) + "\n"


def _cuts(report: dict[str, Any]) -> list[str]:
    """Hold-out loss of the teacher and of students right after the cut, by depth; nothing where none was cut."""
    cuts = report.get("cut") or []
    told = [f"{len(c['layers'])} layers {c['holdout_loss']:.2f}" for c in cuts if c["holdout_loss"] is not None]
    return [f"Right after the cut, before any training: {', '.join(told)}.", ""] if told else []


def _spent(events: Iterable[Event]) -> dict[str, dict[str, Any]]:
    """Seconds and peak memory of each phase, over all the processes it took."""
    spent: dict[str, dict[str, Any]] = {phase: {"seconds": 0.0, "peak_bytes": None} for phase in PHASES}
    began: float | None = None
    current, last = "", 0.0
    for event in events:
        if event["kind"] in ("phase_started", "phase_finished", "run_finished", "run_resumed") and began is not None:
            end = event["time"] if event["kind"] in ("phase_finished", "run_finished") else last
            counted = event.get("seconds") if event["kind"] == "phase_finished" else None
            # The supervisor counts by a clock that is never set; the events' own times are those of the wall.
            spent[current]["seconds"] += counted if isinstance(counted, int | float) else max(0.0, end - began)
            began = None
        if event["kind"] == "phase_started" and event.get("phase") in spent:
            began, current = event["time"], event["phase"]
        if event["kind"] == "memory" and event.get("phase") in spent:
            entry = spent[event["phase"]]
            entry["peak_bytes"] = max(entry["peak_bytes"] or 0, event.get("peak_bytes") or 0)
        last = event["time"]
    return spent

"""Any value of any flag is accepted, or refused in a sentence; there is never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.cli.distill import main
from engine.planner.measure import cautious_rates
from engine.run import launch
from engine.settings.config import SETTINGS, check_value
from tests.end_to_end.program import write_texts
from tests.tiny import tiny_model

NASTY = [
    *("", " ", "-", "--", "-1", "0", "1", "2", "1e9", "1e400", "-0.0", "nan", "inf", "0x10", "1_000", "½", "٣", "off"),
    *("~", "~nobody-of-this-name/x", "..", "/dev/null", "/proc/self/mem", "/nowhere/at/all", "üñï", "9" * 500),
    *("a\0b", "\udcff", "\ud800", "\n", "\x1b[31m", "a" * 300, "/" + "a/" * 3000, "2GB", "2GiB", "0MB", "cuda:9"),
    *("from-teacher", "owner/name", "owner/../name", "python-docs", "%s", "{0}", "--samples", "--samples=3", "="),
    *("none", "null", "{}"),
]
values = st.one_of(st.sampled_from(NASTY), st.text(max_size=20), st.integers().map(str), st.floats().map(str))


@pytest.fixture(scope="module")
def request_that_is_good(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("good")
    words = ["--teacher", tiny_model("llama"), "--student", tiny_model("llama", num_layers=2)]
    return [str(word) for word in (*words, "--data", write_texts(folder / "data"), "--output_dir", folder / "run")]


@example(flag="memory_budget", value="9" * 500, glued=False)  # these ended as 'something unexpected' once
@example(flag="teacher", value="a" * 5000, glued=False)
@example(flag="data", value="~nobody-of-this-name/x", glued=True)
@example(flag="data", value="a" * 300, glued=False)  # longer than a name may be
@given(flag=st.sampled_from([*SETTINGS, "plain", "version", "frobnicate"]), value=values, glued=st.booleans())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_text_behind_any_flag_is_accepted_or_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request_that_is_good: list[str],
    flag: str,
    value: str,
    glued: bool,
) -> None:
    monkeypatch.setattr(launch, "machine_rates", lambda **_: cautious_rates("cpu", 1))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if flag == "data" and os.path.isdir(value.split("\0")[0]):
        value = "nowhere"  # the whole of a disk would be listed
    words = [f"--{flag}={value}"] if glued else [f"--{flag}", value]
    try:
        code = main([*request_that_is_good, *words, "--dry_run"])
    except SystemExit as end:  # --help
        code = int(end.code or 0)
    told = capsys.readouterr().err
    assert code in (0, 2, 3), told
    assert "unexpected" not in told
    assert "Traceback" not in told
    assert (code == 0) == (told == "")
    if told:
        assert told.rstrip()[-1] in ".?" or "pip install" in told, told
        told.encode()
    assert not list(tmp_path.iterdir()), "a dry run makes nothing"


@given(name=st.sampled_from(sorted(SETTINGS)), value=st.one_of(values, st.none(), st.booleans(), st.binary(max_size=4)))
@settings(max_examples=300, deadline=None)
def test_any_value_in_the_form_is_good_or_refused_in_words(name: str, value: object) -> None:
    told = check_value(name, value)
    assert told is None or (told and "\n" not in told)

"""Threads of a process that computes sleep while they wait: they leave the cores to other programs."""

from __future__ import annotations

import os

import pytest

from engine.cli.distill import guarded
from engine.machine.compute import SLEEPING_THREADS, compute_environment
from engine.talk import conversation
from engine.talk.conversation import ChatSession


@pytest.fixture(autouse=True)
def _no_policy(monkeypatch):
    for name in SLEEPING_THREADS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def _seen(words):
    seen = {}

    def body(_):
        seen.update(os.environ)
        return 0

    assert guarded(words, body) == 0
    return {name: seen.get(name) for name in SLEEPING_THREADS}


def test_threads_of_a_command_sleep_while_they_wait():
    assert _seen([]) == SLEEPING_THREADS


def test_what_the_user_set_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert _seen([])["OMP_WAIT_POLICY"] == "ACTIVE"


def test_threads_of_a_phase_sleep_while_they_wait():
    assert SLEEPING_THREADS.items() <= compute_environment(2, keep_memory=True).items()


def test_threads_of_a_model_that_is_talked_to_sleep_while_they_wait(monkeypatch, tmp_path):
    seen = {}

    def started(command, **options):
        seen.update(options["env"])
        raise ChildProcessError

    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setattr(conversation.subprocess, "Popen", started)
    with pytest.raises(ChildProcessError):
        next(ChatSession(tmp_path).ask("Where?"))
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["GOMP_SPINCOUNT"] == "7", "the user's own"

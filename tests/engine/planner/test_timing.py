import itertools
from dataclasses import replace

import pytest

from engine.data.sample_limits import SampleLimits
from engine.planner.defaults import EVALUATION_ROWS
from engine.planner.measure import cautious_rates
from engine.planner.phase_settings import StudentSetting, TeacherSetting
from engine.planner.timing import (
    evaluation_seconds,
    pass_seconds_per_token,
    prepare_duration,
    step_seconds,
    student_duration,
    teacher_duration,
    written_bytes_per_second,
)
from tests.engine.planner.machines import PYTHIA_70M, PYTHIA_410M, RATES, pythia

TEACHER = TeacherSetting(4, 128, "fp32", layer_by_layer=False)
STUDENT = StudentSetting(4, 1, 128, "fp32", checkpointing=False, optimizer="adamw")


def test_time_grows_with_tokens_and_with_the_model() -> None:
    short, long = (teacher_duration(PYTHIA_70M, TEACHER, n, RATES).seconds for n in (10**5, 10**6))
    assert 5 < long / short < 10
    assert teacher_duration(PYTHIA_410M, TEACHER, 10**6, RATES).seconds > 3 * long


def test_two_operations_for_each_parameter_and_token_are_the_least() -> None:
    least = 2 * PYTHIA_410M.matmul_parameters * 10**6 / RATES.gemm_flops["fp32_large"]
    found = teacher_duration(PYTHIA_410M, TEACHER, 10**6, RATES)
    assert least < found.seconds < 2 * least


def test_computing_activations_again_costs_about_a_third() -> None:
    plain, again = (
        step_seconds(PYTHIA_410M, replace(STUDENT, batch=16, checkpointing=on), RATES) for on in (False, True)
    )
    assert 1.2 < again / plain < 1.4


def test_a_slow_disk_slows_a_streamed_teacher_down() -> None:
    streamed = replace(TEACHER, layer_by_layer=True)
    slow = replace(RATES, disk_read_bytes_per_second=1e6)
    assert (
        teacher_duration(PYTHIA_410M, streamed, 10**5, slow).seconds
        > 10 * teacher_duration(PYTHIA_410M, streamed, 10**5, RATES).seconds
    )


def test_what_was_not_measured_has_the_larger_error() -> None:
    guessed = cautious_rates("cpu", 4)
    measured = student_duration(PYTHIA_70M, STUDENT, 100, 10_000, RATES)
    rough = student_duration(PYTHIA_70M, STUDENT, 100, 10_000, guessed)
    assert rough.error / rough.seconds > measured.error / measured.seconds


def test_few_rows_at_a_time_are_slower_a_token() -> None:
    one, eight, sixty_four = (
        teacher_duration(PYTHIA_410M, replace(TEACHER, batch=batch), 10**6, RATES).seconds for batch in (1, 8, 64)
    )
    assert one > 1.4 * eight
    assert eight < 1.15 * sixty_four


def test_short_trainings_count_what_is_done_before_and_after_them() -> None:
    """An evaluation and samples at both ends, and the student's folder."""
    none = student_duration(PYTHIA_410M, STUDENT, 0, 10_000, RATES).seconds
    evaluations = 2 * evaluation_seconds(PYTHIA_410M, STUDENT, 10_000, RATES)
    written = 4 * PYTHIA_410M.parameters / written_bytes_per_second(RATES)
    assert none > evaluations + written + 2
    slow = replace(RATES, disk_write_bytes_per_second=1e6)
    assert student_duration(PYTHIA_410M, STUDENT, 0, 10_000, slow).seconds > none + 1000


def test_what_a_layer_does_beside_its_products_takes_as_long_as_was_measured() -> None:
    """Forward passes and training steps apart, narrow and wide models apart."""
    measured = {
        f"{work}_fp32_{size}": 1e-9 * (1 + number)
        for number, (work, size) in enumerate(itertools.product(("forward", "learn"), ("small", "large")))
    }
    machine = replace(RATES, moving_seconds=measured)
    for work, shape, key in (
        ("forward", PYTHIA_410M, "forward_fp32_large"),
        ("learn", PYTHIA_410M, "learn_fp32_large"),
        ("learn", pythia(256, 4, 4), "learn_fp32_small"),
    ):
        before = pass_seconds_per_token(shape, 1024, 128, "fp32", machine, work)
        slower = replace(machine, moving_seconds={**measured, key: 2 * measured[key]})
        after = pass_seconds_per_token(shape, 1024, 128, "fp32", slower, work)
        numbers = shape.num_layers * (24 * shape.hidden_size + 8 * shape.intermediate_size)
        assert after - before == pytest.approx(1.2 * numbers * measured[key])


def test_samples_of_answers_take_longer_and_those_of_a_streamed_student_read_its_layers() -> None:
    text, answers = (
        student_duration(PYTHIA_410M, STUDENT, 0, 0, RATES, limits=SampleLimits.of(has)).seconds
        for has in (False, True)
    )
    assert text + 15 < answers < text + 2 * 30
    streamed = replace(STUDENT, layer_by_layer=True)
    slow = replace(RATES, disk_read_bytes_per_second=1e9)
    fast = replace(RATES, disk_read_bytes_per_second=1e15)
    once = 2 * 8 * sum(PYTHIA_410M.layer_parameters) * PYTHIA_410M.stored_bytes / 1e9
    times = [
        student_duration(PYTHIA_410M, streamed, 0, 0, rates, limits=SampleLimits(seconds=1e6)).seconds
        for rates in (slow, fast)
    ]
    assert times[0] - times[1] == pytest.approx(once, rel=1e-3)


def test_only_the_first_phase_imports_where_memory_is_kept() -> None:
    slow = replace(RATES, torch_seconds=RATES.torch_seconds + 10)
    for is_kept, imports in ((False, 29), (True, 0)):
        teacher, student = (replace(setting, keeps_memory=is_kept) for setting in (TEACHER, STUDENT))
        for found in (
            teacher_duration(PYTHIA_70M, teacher, 1000, slow).seconds
            - teacher_duration(PYTHIA_70M, teacher, 1000, RATES).seconds,
            student_duration(PYTHIA_70M, student, 10, 1000, slow).seconds
            - student_duration(PYTHIA_70M, student, 10, 1000, RATES).seconds,
        ):
            assert found == pytest.approx(imports)


def test_preparing_takes_a_start_and_the_text() -> None:
    none, some, docs = (
        prepare_duration(tokens, RATES, is_documentation=docs).seconds
        for tokens, docs in ((0, False), (10**7, False), (0, True))
    )
    assert none > 2 * RATES.torch_seconds
    assert some > none + 10 * RATES.torch_seconds
    assert none < docs < none + 2 * RATES.torch_seconds


def test_a_small_holdout_is_read_once_less() -> None:
    rows = EVALUATION_ROWS * STUDENT.sequence_length
    small, large = (student_duration(PYTHIA_410M, STUDENT, 0, tokens, RATES).seconds for tokens in (rows, rows + 1))
    assert large - small == pytest.approx(evaluation_seconds(PYTHIA_410M, STUDENT, rows, RATES), rel=0.01)

"""Times and speed-ups: measured in turn, against planted durations and on a real tiny teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import new_network
from torch import Tensor

from dollar.evaluation.measures import speed
from dollar.evaluation.measures.speed import in_turn, measure_speed
from dollar.models.teacher import Teacher
from dollar.sampling.samplers import Sampler, teacher_sampler

PROMPT = "a small red circle moving left on a black background"


def test_works_are_timed_in_turn_without_their_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def work(name: str, *seconds: float) -> object:
        left = list(seconds)

        def run() -> None:
            order.append(name)
            now[0] += left.pop(0)

        return run

    found = in_turn({"a": work("a", 9, 1, 5, 2), "b": work("b", 9, 3, 3, 4)}, 3, torch.device("cpu"))  # type: ignore[dict-item]
    assert order == ["a", "b"] * 4
    assert {name: seconds.tolist() for name, seconds in found.items()} == {"a": [1, 5, 2], "b": [3, 3, 4]}


def test_speed_is_teachers_over_students_time_and_its_ceiling_counts_forwards(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = {
        "text": 0.1,
        "decode": 0.2,
        "reference": 8.0,
        "forwards": 75.0,
        "4 steps": 0.25,
        "4 forwards": 4.0,
        "1 steps": 0.1,
        "1 forwards": 1.0,
    }
    slowed = np.array([1.0, 10.0, 3.0])  # a busy machine in the second round

    def planted(works: dict, *_: object) -> dict[str, np.ndarray]:
        for work in works.values():
            work()  # all of them can be run
        return {name: took[name] * slowed / 3 for name in works}

    monkeypatch.setattr(speed, "in_turn", planted)
    student = teacher.denoiser_of(new_network(teacher), torch.float32)
    asked: list[int] = []

    def sampler(steps: int) -> Sampler:
        def diffusion(generators: list[torch.Generator], condition: object) -> Tensor:
            asked.append(steps)
            return teacher.noise(generators)

        return Sampler("any", steps, diffusion, student, steps == 50)

    slow, speeds = measure_speed(teacher, sampler(50), PROMPT, 2, [sampler(4), sampler(1)])
    assert slow == pytest.approx({"text": 0.1, "diffusion": 8.0, "decode": 0.2})
    assert speeds[4]["speedup"] == pytest.approx(32) and speeds[4]["speedup_ceiling"] == pytest.approx(75 / 4)
    assert speeds[1]["speedup"] == pytest.approx(80) and speeds[1]["speedup_ceiling"] == pytest.approx(75)
    assert speeds[4]["seconds"] == pytest.approx({"text": 0.1, "diffusion": 0.25, "decode": 0.2})
    assert set(asked) == {50, 4, 1}


@pytest.mark.parametrize("guided", [False, True])
def test_the_ceiling_is_of_batches_as_they_are_run(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    clips: dict[str, list[int]] = {}

    def planted(works: dict, *_: object) -> dict[str, np.ndarray]:
        for name in ("forwards", "2 forwards"):
            clips[name] = []
            hook = torch.nn.modules.module.register_module_forward_pre_hook(
                lambda module, args, to=clips[name]: to.append(len(args[0])) if module in roots else None
            )
            works[name]()
            hook.remove()
        return {name: np.ones(2) for name in works}

    student = teacher.denoiser_of(new_network(teacher), torch.float32)
    roots = [teacher.denoiser.network, student.network]
    monkeypatch.setattr(speed, "in_turn", planted)
    reference = Sampler("teacher", 3, lambda generators, _: teacher.noise(generators), teacher.denoiser, guided)
    few = Sampler("student", 2, lambda generators, _: teacher.noise(generators), student, guided)
    measure_speed(teacher, reference, PROMPT, 2, [few])
    assert clips == {"forwards": [1 + guided] * 3, "2 forwards": [1 + guided] * 2}
    assert teacher_sampler(teacher, 2).guided and not teacher_sampler(teacher, 2, 1.0).guided


def test_the_teacher_is_timed_alone(teacher: Teacher) -> None:
    two, none = measure_speed(teacher, teacher_sampler(teacher, 2), PROMPT, repeats=2)
    assert none == {} and all(s > 0 for s in two.values())
    twenty, _ = measure_speed(teacher, teacher_sampler(teacher, 20), PROMPT, repeats=2)
    assert twenty["diffusion"] > 2 * two["diffusion"]

"""Clips by prompt and seed, and a finished student as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import LATENT, PROMPT, fingerprint, new_network

from dollar.export.student import few_steps, load_student, read_card, save_student
from dollar.models.teacher import Teacher
from dollar.sampling.samplers import (
    decode,
    generators,
    make_clips,
    make_latents,
    student_sampler,
    teacher_sampler,
)

OTHER = "a large blue cross standing still on a white background"
TIMES = [999, 749, 499, 249]


@pytest.fixture
def folder(teacher: Teacher, tmp_path: Path) -> Path:
    """A student's folder, trained for 4 and 2 steps."""
    torch.manual_seed(3)
    network = new_network(teacher)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.01 * torch.randn(p.shape)
    save_student(tmp_path / "student", teacher, network, few_steps(teacher, TIMES, [4, 2], "renoise"), {"cycle": 7})
    return tmp_path / "student"


def test_a_clip_is_its_prompt_and_seed_alone(teacher: Teacher) -> None:
    few_step = few_steps(teacher, TIMES, [4], "renoise")[4]
    for sampler in (teacher_sampler(teacher, 3), student_sampler(teacher, teacher.denoiser, few_step)):
        prompts, seeds = [PROMPT, OTHER, PROMPT], [0, 1, 1]
        together = make_latents(sampler, teacher, prompts, seeds, show=False)
        assert together.shape == (3, *LATENT)
        apart = make_latents(sampler, teacher, prompts, seeds, batch=2, show=False)
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
        again = make_latents(sampler, teacher, [PROMPT], [1], show=False)
        torch.testing.assert_close(again[0], together[2], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(together[0], together[2], atol=0.1)  # another seed
        assert not torch.allclose(together[1], together[2], atol=1e-4)  # another prompt
        assert not together.requires_grad


def test_guidance_is_the_teachers_own_unless_told(teacher: Teacher) -> None:
    samplers = [teacher_sampler(teacher, 2, scale) for scale in (None, 3.0, 1.0)]
    own, same, none = (make_latents(s, teacher, [PROMPT], [0], show=False) for s in samplers)
    assert torch.equal(own, same) and not torch.allclose(own, none, atol=1e-3)


def test_the_students_noise_between_steps_follows_the_seed(teacher: Teacher) -> None:
    """Several generators draw in turn, one for each clip: the second step's noise is the second draw of its own."""
    drawn = []
    original = teacher.noise
    teacher.noise = lambda g, again=False: drawn.append(original(g)) or drawn[-1]
    few_step = few_steps(teacher, TIMES, [2], "renoise")[2]
    make_latents(student_sampler(teacher, teacher.denoiser, few_step), teacher, [PROMPT, OTHER], [4, 5], show=False)
    teacher.noise = original
    assert len(drawn) == 2
    (five,) = generators([5])
    alone = [original([five]), original([five])]
    assert torch.equal(drawn[0][1], alone[0][0]) and torch.equal(drawn[1][1], alone[1][0])


def test_clips_are_bytes_and_independent_of_chunks(teacher: Teacher) -> None:
    latents = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(0))
    one = decode(teacher, latents)
    assert one.dtype == torch.uint8 and one.shape == (3, 9, 3, 32, 32)
    assert torch.equal(one[1:2], decode(teacher, latents[1:2]))
    sampler = teacher_sampler(teacher, 2)
    clips = make_clips(sampler, teacher, [PROMPT], [0], show=False)
    assert torch.equal(clips, decode(teacher, make_latents(sampler, teacher, [PROMPT], [0], show=False)))


def test_a_student_is_read_back_as_it_was(teacher: Teacher, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["scheduler", "student.json", "transformer"]
    card = read_card(folder)
    assert card["timesteps"] == TIMES and card["steps"] == [4, 2] and card["between"] == "renoise"
    assert card["cycle"] == 7 and card["teacher_name"] == "tiny"
    student = load_student(folder, teacher)
    assert not any(p.requires_grad for p in student.denoiser.network.parameters())
    assert not torch.equal(fingerprint(student.denoiser.network), fingerprint(teacher.denoiser.network))
    assert student.sampler(teacher, 2).steps == 2
    assert student.few_steps[2].times.tolist() == [999, 499]


def test_a_step_count_it_was_not_trained_for_is_refused_unless_forced(teacher: Teacher, folder: Path) -> None:
    student = load_student(folder, teacher)
    with pytest.raises(ValueError, match=r"steps is 3, but the student in .* was trained for 4 or 2; .*force=true"):
        student.sampler(teacher, 3)
    for steps in (3, 5, 7):  # whether or not a scheduler could be saved with them
        forced = student.sampler(teacher, steps, force=True)
        assert forced.steps == steps
        assert make_latents(forced, teacher, [PROMPT], [0], show=False).isfinite().all()


def test_folders_that_are_no_students_are_sentences(teacher: Teacher, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"no student in {folder.parent}.*there is one in {folder}"):
        load_student(folder.parent, teacher)
    with pytest.raises(ValueError, match=r"no student in .*nowhere.*runs/<run>/student"):
        read_card(folder / "nowhere")
    card = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps({**card, "teacher_name": "shapes"}))
    with pytest.raises(ValueError, match="came from the teacher shapes, not tiny; use teacher=shapes"):
        load_student(folder, teacher)

"""Every experiment composes, is planned as it is, and says in its yaml what the planner says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Said, compose

from dollar.cli.arguments import as_they_stand
from dollar.cli.build.loop import check, timetable_of
from dollar.cli.build.vip import VERBS
from dollar.cli.overrides import CONF, check_overrides
from dollar.vip.stages import Stages

ALL = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
STAGES = [name for name in ALL if name.startswith("vip")]  # of launch/vip.py
EXPERIMENTS = [name for name in ALL if name not in STAGES]  # of launch/train.py
# What the user has to supply; a run without it ends with a sentence.
SUPPLIED = {"wan": ("data.path=latents",)}

# Numbers of a LoRA of rank 64: in and out of each linear layer of a block, times the rank and the blocks.
FACTORS = {
    "wan": 30 * 64 * (8 * 2 * 1536 + 2 * (1536 + 8960)),
    "dollar_paper": 30 * 64 * (4 * 2 * 1920 + 2 * (1920 + 7680) + 2 * (512 + 6 * 1920)),
}


def stated(name: str) -> str:
    """An experiment's comments as one line."""
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_plan_says_what_the_experiment_states(name: str, command: Callable[..., Said]) -> None:
    text, large = stated(name), compose("train", f"experiment={name}").teacher.name != "shapes"
    given = re.search(r"`launch/plan.py ([^`]*)`", text)
    assert (given is not None) == large, "hours of a large teacher are stated with the command that gives them"
    words = given[1].split() if given else [f"experiment={name}"]
    said = command("plan", *words)
    assert said.code == 0, said.err
    assert "it fits" in said.out
    supplied = "to train it: data.path has no default; give data.path=VALUE\n"
    assert said.out.endswith(supplied) if name in SUPPLIED else "to train it" not in said.out
    if given:
        hours, gib = re.search(r"([\d.,]+) hours at", text), re.search(r"([\d.,]+) GiB", text)
        processes = words[1].removeprefix("processes=")
        assert f"For {processes} H100" in text or f"On {processes} H100" in text
        assert f" {hours[1]} hours on {processes}," in said.out
        assert f"it fits: about {gib[1]} of 80 GiB" in said.out
        factors = FACTORS[name]
        assert f"; 1 with student.lora=64, which trains {factors:,} numbers" in said.out
        assert f"{hours[1]} hours" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_passes_the_checks_of_a_training(name: str) -> None:
    config = compose("train", f"experiment={name}", *SUPPLIED.get(name, ()))
    processes = 8 if config.teacher.name != "shapes" else 1
    objective = check(config, processes)
    assert not objective.needs.pursues or config.reward.get("_target_") is not None
    timetable = timetable_of(config)
    assert 0 < timetable.validate_every < timetable.cycles, "an experiment looks at its student on the way"
    assert timetable.save_every < timetable.cycles


def test_wans_cycles_are_updates_of_the_student_as_public_recipes_count_them() -> None:
    """FastVideo's 4,000 steps train the fake score at each and the student at every fifth, with 64 clips at 2e-6."""
    config = compose("train", "experiment=wan")
    assert config.cycles * config.fake_updates == 4_000 and config.batch == 64
    assert config.validation.every * config.fake_updates == 200
    assert config.optim.student.lr == config.optim.fake.lr == 2e-6
    assert config.vsd.guidance_scale - 1 == 3.5  # w, as theirs is
    # Without a reward nothing scores clips that nobody sees.
    assert config.validation.prompts == config.validation.clips


def test_a_run_without_what_has_to_be_supplied_ends_with_a_sentence(command: Callable[..., Said]) -> None:
    said = command("train", "experiment=wan")
    assert said.code == 2 and "data.path is missing, and has no default; give data.path=VALUE" in said.err
    said = command("train", "experiment=dollar_paper", "reward=none")
    assert said.code == 2 and "name a reward with reward=NAME, or set beta_ft=0" in said.err


@pytest.mark.parametrize("name", STAGES)
def test_the_stages_of_an_experiment_are_commands_that_pass(name: str) -> None:
    config = compose("vip", f"experiment={name}")
    stages = Stages(Path(config.out), list(config.stages), given={verb: list(config[verb]) for verb in VERBS})
    for step in stages.steps_of(1, ["transformer_blocks.1"]):
        check_overrides(step.verb, as_they_stand(step.verb, list(step.arguments)))
    assert sum(stages.counts) < 30

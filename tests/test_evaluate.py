"""The yardstick on real clips and on a defect, differences, the latent reward's figures, and metrics.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EMBEDDED, ROOT, TINY, TINY_DATA, TINY_RUN, compose, needs_embedded, new_network
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from dollar.data import shapes
from dollar.diffusion.draws import Draws
from dollar.evaluation.yardstick import Figures, Pairs, Yardstick, difference, latent_reward_figures, pairs, scored
from dollar.models.teacher import Teacher
from dollar.rewards.mixture import Mixture
from dollar.sampling.samplers import Sampler
from dollar.surrogate.climb import Climb
from dollar.surrogate.pixel_reward import PixelReward

HELD_OUT = shapes.captions("held_out")
MEASURES = {
    "alignment",
    "attributes",
    "reward",
    "frechet",
    "sharpness",
    "saturation",
    "contrast",
    "flow",
    "vendi",
    "spread",
}


def render(prompt: str, seed: int) -> np.ndarray:
    return shapes.render(shapes.parse(prompt), seed)


@pytest.fixture(scope="module")
def yardstick() -> Yardstick:
    """Three prompts with eight seeds each, and a reference of 72 training clips."""
    chosen = Pairs([p for p in HELD_OUT[:3] for _ in range(8)], list(range(24)))
    training = shapes.ShapesClips("train", 72, seed=1)
    return Yardstick(chosen, render, list(zip(training.captions, training.seeds, strict=True)), show=False)


def made(yardstick: Yardstick, shift: int = 3_000_000) -> Tensor:
    """Clips of a perfect model: real ones of other seeds, uint8 [N, T, C, H, W]."""
    clips = [render(p, shift + s) for p, s in zip(*yardstick.pairs, strict=True)]
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)


def test_pairs_come_in_groups_of_one_prompt_then_in_turn() -> None:
    chosen = pairs(HELD_OUT, 600)
    assert len(chosen.prompts) == len(chosen.seeds) == len(set(chosen.seeds)) == 600
    groups = [set(chosen.prompts[i : i + 8]) for i in range(0, 256, 8)]
    assert all(len(g) == 1 for g in groups) and len(set.union(*groups)) == 32
    assert chosen.prompts[256 : 256 + len(HELD_OUT)] == HELD_OUT
    assert pairs(HELD_OUT, 600) == chosen and pairs(HELD_OUT, 64).prompts == chosen.prompts[:64]


def test_any_beginning_of_the_pairs_asks_for_everything() -> None:
    counts = {64: (4, 1, 2), 128: (8, 2, 3), 256: (15, 5, 7)}  # clips: how often each size, motion, shape at least
    for clips, least in counts.items():
        asked = [shapes.parse(p) for p in dict.fromkeys(pairs(HELD_OUT, clips).prompts)]
        groups = ((shapes.SIZES, "size"), (shapes.MOTIONS, "motion"), (shapes.SHAPES, "shape"))
        for (values, name), n in zip(groups, least, strict=True):
            for value in values:
                assert sum(getattr(a, name) == value for a in asked) >= n, (clips, value)
    assert len({a.colour for a in asked}) == 6 and len({a.background for a in asked}) == 4


def test_a_perfect_model_measures_as_real_clips_do(yardstick: Yardstick) -> None:
    real, perfect = yardstick.real_figures(), yardstick.measure(made(yardstick))
    assert set(real.metrics) == {"clips", *MEASURES}
    for figures in (real, perfect):
        assert figures.metrics["clips"] == 24 and figures.metrics["alignment"] == 1.0 and figures.right.all()
        assert set(figures.metrics["attributes"]) == set(shapes.Attributes._fields)
        assert figures.metrics["reward"] == pytest.approx(figures.reward.mean(), abs=1e-6)
        assert figures.metrics["reward"] > 0.9
    assert real.metrics["sharpness"] == pytest.approx(1, abs=0.1)
    assert real.metrics["frechet"]["excess"] == pytest.approx(0, abs=1e-6)  # the floor is these very clips' distance
    assert real.metrics["frechet"]["distance"] > 0
    assert perfect.metrics["frechet"]["excess"] < 0.6 * perfect.metrics["frechet"]["floor"]
    assert perfect.metrics["sharpness"] == pytest.approx(1, abs=0.1)
    assert perfect.metrics["vendi"]["mean"] == pytest.approx(real.metrics["vendi"]["mean"], rel=0.2)


def test_each_defect_moves_its_measure(yardstick: Yardstick) -> None:
    perfect, clips = yardstick.measure(made(yardstick)).metrics, made(yardstick)
    blurred = torch.nn.functional.avg_pool3d(clips.float(), (1, 5, 5), 1, (0, 2, 2), count_include_pad=False)
    soft = yardstick.measure(blurred.byte()).metrics
    assert soft["sharpness"] < 0.6 * perfect["sharpness"]
    assert soft["frechet"]["distance"] > perfect["frechet"]["distance"]
    collapsed = clips[torch.arange(24) // 8 * 8]
    one = yardstick.measure(collapsed).metrics
    assert one["alignment"] == 1.0 and one["vendi"]["mean"] == pytest.approx(1, abs=1e-3)
    assert one["spread"]["position"] == pytest.approx(0, abs=1e-4)
    slow = yardstick.measure(clips[:, torch.arange(17) // 2]).metrics  # half the motion is lost
    assert slow["flow"] == pytest.approx(perfect["flow"] / 2, rel=0.05)
    assert [slow[name] for name in ("saturation", "contrast")] == pytest.approx(
        [perfect[name] for name in ("saturation", "contrast")], rel=0.02
    )
    wrong = yardstick.measure(clips.roll(8, 0)).metrics
    assert wrong["alignment"] == 0.0 and wrong["reward"] < perfect["reward"] - 0.2
    assert wrong["vendi"]["mean"] == pytest.approx(perfect["vendi"]["mean"])


def test_fewer_clips_may_be_looked_at_whatever_their_number(yardstick: Yardstick) -> None:
    for count in (16, 17):  # the seventeenth is the only one of its prompt
        figures = yardstick.measure(made(yardstick), count)
        assert figures.metrics["clips"] == len(figures.right) == len(figures.reward) == count


def test_a_difference_is_students_minus_teachers_on_shared_pairs() -> None:
    student = Figures({}, np.array([True] * 60 + [False] * 4), np.full(64, 0.75))
    teacher_right, teacher_reward = np.array([True] * 20 + [False] * 12), np.full(32, 0.5)
    prompts = [p for p in HELD_OUT[:16] for _ in range(4)]
    found = difference(student, teacher_right, teacher_reward, prompts)
    assert found["pairs"] == 32
    assert found["alignment"]["difference"] == pytest.approx(12 / 32)
    assert 0 < found["alignment"]["low"] < 12 / 32 < found["alignment"]["high"]
    assert found["reward"] == {"difference": 0.25, "low": 0.25, "high": 0.25}


class Planted:
    """A surrogate and its pixel reward: the truth is a latent's first number, the guess what `says` makes of it."""

    def __init__(self, says: Callable[[Tensor], Tensor]) -> None:
        self.says = says
        self.pixel = self

    def predict(self, x: Tensor, condition: object) -> Tensor:
        return self.says(x[:, 0, 0, 0, 0])

    def score_videos(self, videos: Tensor, prompts: list[str]) -> Tensor:
        return 255 * videos[:, 0, 0, 0, 0]


def climbed(surrogate: Planted, x: Tensor, prompts: list[str], draws: Draws) -> list[Climb]:
    return [Climb(share, 2.0, share * float(x.sum()), 0.5, len(x), 0.6) for share in (0.01, 0.03, 0.1)]


def test_the_latent_rewards_figures_are_of_its_guesses(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = torch.tensor([0.0, 0.05, 0.3, 0.35, 0.7, 1.0])

    def gives(values: Tensor) -> Sampler:
        return Sampler("planted", 1, lambda drawn, condition: values.reshape(-1, 1, 1, 1, 1), teacher.denoiser)

    samplers = [gives(truth[:3]), gives(truth[3:])]
    monkeypatch.setattr("dollar.evaluation.yardstick.climb", climbed)
    monkeypatch.setattr("dollar.evaluation.yardstick.decode", lambda teacher, latents: latents)

    def figures(says: Callable[[Tensor], Tensor]) -> dict[str, float]:
        return latent_reward_figures(Planted(says), teacher, samplers, HELD_OUT[:3])

    right = figures(lambda r: r + 0.5)
    assert (
        right["rank_correlation"] == pytest.approx(1)
        and right["correlation"] == pytest.approx(1)
        and right["pairwise"] == 1
        and right["clips"] == 6
    )
    assert right["mse"] == pytest.approx(0.25)
    climb = [right[f"climb_3_{name}"] for name in ("predicted", "true", "true_se")]
    assert climb == pytest.approx([2.0, 0.03 * 2.05, 0.5]), "of the last sampler's clips"
    assert right["climb_10_true"] == pytest.approx(0.205) and right["cosine"] == 0.6
    assert right["pairs"] == 13  # of 15: 0 and 0.05, and 0.3 and 0.35, are too close to tell
    backwards = figures(lambda r: -r)
    assert backwards["correlation"] == pytest.approx(-1) and backwards["pairwise"] == 0
    # The best taken for the worst: wrong in the five pairs that it should win.
    blind = figures(lambda r: torch.where(r == 1, -1.0, r))
    assert blind["pairwise"] == pytest.approx(8 / 13)


def test_each_part_of_a_mixture_has_its_mean_and_sees_each_clip_once(teacher: Teacher) -> None:
    class Red:
        seen = 0

        def score(self, videos: Tensor, prompts: list[str]) -> Tensor:
            self.seen += len(videos)
            return videos[:, :, 0].mean((1, 2, 3))

    class Short(Red):
        """Can't judge a prompt of many letters."""

        def score(self, videos: Tensor, prompts: list[str]) -> Tensor:
            return torch.tensor([float("nan") if len(p) > 3 else 1.0 * len(p) for p in prompts])

    videos = torch.zeros(20, 2, 3, 4, 4, dtype=torch.uint8)
    videos[:10] = 255
    prompts = ["four", *["two"] * 9, *["a"] * 10, "more than there are clips"]
    red = Red()
    found = scored(
        PixelReward(Mixture({"red": red, "short": Short()}, {"red": 2, "short": -1}), teacher.codec), videos, prompts
    )
    assert found["scores"] == pytest.approx({"red": 0.5, "short": (9 * 3 + 10) / 19}), "nan is left out of its own part"
    assert found["clips"] == 19 and found["mean"] == pytest.approx((9 * -1 + 10 * -1) / 19)
    assert red.seen == 20


def test_metrics_json_has_every_figure(
    command: Callable, tiny_teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation of a student whose clips are put in its hands, so that only measuring costs time."""
    runs, folder = f"runs={tmp_path}", f"teacher.folder={tiny_teacher_folder}"
    trained = command("train", *TINY_RUN, *TINY_DATA, runs, folder, "run=one", "cycles=1", "student.steps=[2]")
    assert trained.code == 0, trained.err
    quick = tmp_path / "quick"  # one of a single step beside it
    shutil.copytree(tmp_path / "one" / "student", quick)
    card = json.loads((quick / "student.json").read_text())
    (quick / "student.json").write_text(json.dumps(card | {"steps": [1], "timesteps": [999]}))

    def hand_over(sampler: Sampler, teacher: Teacher, prompts: list[str], seeds: list[int], **_: object) -> Tensor:
        clips = [render(p, 7_000_000 + s) for p, s in zip(prompts, seeds, strict=True)]
        videos = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
        return torch.zeros_like(videos) if sampler.name == "untrained" else videos

    refused = command("evaluate", f"checkpoint={tmp_path / 'one' / 'student'}", "parallel.device=cpu")
    assert refused.code == 2 and "makes clips of (9, 32, 32)" in refused.err
    monkeypatch.setattr("dollar.evaluation.yardstick.check_size", lambda teacher: None)
    monkeypatch.setattr("dollar.evaluation.systems.make_clips", hand_over)
    settings = ("clips=64", "teacher_clips=64", "teacher_steps=4", "training_clips=72", "lrm_prompts=3", "repeats=2")
    student = f"checkpoint={tmp_path / 'one' / 'student'}"
    done = command("evaluate", student, f"also=[{quick}]", *settings, "parallel.device=cpu", "shown=1")
    assert done.code == 0, done.err
    text = (tmp_path / "one" / "metrics.json").read_text()
    assert "NaN" not in text  # strict JSON, which other languages read too
    metrics = json.loads(text)
    assert metrics["teacher"].keys() >= MEASURES and metrics["teacher"]["steps"] == 4
    assert set(metrics["student"]) == {"2", "1"} and metrics["also"] == {str(quick): metrics["weights"]}
    for figures in metrics["student"].values():
        assert MEASURES | {"seconds", "speedup", "speedup_ceiling", "difference"} <= figures.keys()
        assert set(figures["seconds"]) == {"text", "diffusion", "decode"}
        assert set(figures["attributes"]) == set(shapes.Attributes._fields)
        assert figures["clips"] == 64 and figures["alignment"] == metrics["teacher"]["alignment"] > 0.95
        assert figures["difference"]["alignment"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
        assert figures["speedup"] > 0 and figures["speedup_ceiling"] > 0
    assert {"text", "diffusion", "decode"} == set(metrics["teacher"]["seconds"])
    assert {"correlation", "pairwise", "mse"} <= metrics["lrm"].keys() and metrics["lrm"]["clips"] == 3 * 7
    assert metrics["untrained"]["2"]["alignment"] == 0.0
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.startswith("<!") and "http://" not in page.replace("http://www.w3.org", "") and "data:image/gif" in page
    assert "student 2" in done.out and "student 1" in done.out and "metrics.json" in done.out


def test_what_cant_be_measured_is_told_before_the_teacher_is_read(
    command: Callable, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another teacher's student too, whose folder needn't even be there."""
    from dollar.export.student import few_steps, save_student

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be read for this")

    monkeypatch.setattr("dollar.models.pipeline.Pipeline.read", forbidden)
    student, out = tmp_path / "run" / "student", f"out={tmp_path / 'out'}"
    settings = {"_target_": "dollar.models.cogvideox.load", "name": "tiny", "folder": "/nowhere", **TINY}
    save_student(
        student, teacher, new_network(teacher), few_steps(teacher, None, [2], "renoise"), {"teacher": settings}
    )
    given = f"checkpoint={student}"

    def refused(*keys: str) -> str:
        said = command("evaluate", out, "parallel.device=cpu", *keys)
        assert said.code == 2 and len(said.err.splitlines()) == 1, said.err
        return said.err

    assert "tiny makes clips of (9, 32, 32)" in refused(given)
    assert "steps has [3], but the student" in refused(given, "steps=[3]")
    assert "both trained for 2 steps" in refused(given, f"also=[{student}]")
    assert f"write also=[{student}]" in refused(given, f"also={student}")
    assert "give checkpoint=FOLDER" in refused(f"also=[{student}]")
    fits = ("teacher.frames=17", "teacher.height=64", "teacher.width=64")
    assert "no teacher at /nowhere" in refused(given, *fits)
    fits = (*fits, f"teacher.folder={teacher.folder}")
    assert "has no figures of this teacher in 50 steps" in refused(given, *fits, "teacher_clips=0")
    (tmp_path / "figures.json").write_text("[]")
    figures = f"teacher_metrics={tmp_path / 'figures.json'}"
    assert "holds no figures of a teacher" in refused(given, *fits, "teacher_clips=0", figures)
    assert "teacher_steps is 1001" in refused(given, *fits, "teacher_steps=1001")
    next(student.glob("transformer/*.safetensors")).unlink()
    assert "lacks" in refused(given, *fits)
    assert "parallel.device is 'gpu'" in command("evaluate", out, "parallel.device=gpu").err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "works in one process, and torchrun has started 2" in refused()
    assert not (tmp_path / "out").exists()


@needs_embedded
def test_the_shipped_figures_are_of_the_shipped_teacher() -> None:
    from types import SimpleNamespace

    from dollar.evaluation.files import identity

    config = compose("evaluate")
    stored = json.loads(Path(config.teacher_metrics).read_text())
    mine = identity(SimpleNamespace(folder=EMBEDDED, guidance_scale=config.teacher.guidance_scale))
    assert {key: stored[key] for key in mine} == mine


@needs_embedded
def test_stored_figures_are_not_those_of_a_changed_teacher(tmp_path: Path) -> None:
    from dollar.evaluation.files import settings_of, stored_figures

    config = compose("evaluate")
    own = Path(shutil.copytree(EMBEDDED, tmp_path / "own"))

    def known(**changes: Any) -> bool:
        """Whether the shipped figures are taken for those of a copy of the shipped teacher, changed in this."""
        plain = {**OmegaConf.to_container(config.teacher, resolve=True), "folder": str(own), "text": "stored"}
        made = instantiate({**plain, **changes}, weights=False)
        return (
            settings_of(made).keys() == {"settings"}
            and stored_figures(Path(config.teacher_metrics), made, 256) is not None
        )

    assert known() and known(parts={"vae": shutil.copytree(own / "vae", tmp_path / "vae")})
    assert not known(negative_prompt="a circle")
    path = next((tmp_path / "vae").glob("*.safetensors"))
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    assert not known(parts={"vae": str(tmp_path / "vae")})
    scheduler = own / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"beta_end": 0.012', '"beta_end": 0.013'))
    assert not known()


def test_the_pairs_are_the_same_in_every_process() -> None:
    """Words are hashed anew in each process; with the seed 4 sums of floats once fell another way."""
    asked = "from dollar.data import shapes; from dollar.evaluation.yardstick import pairs; "
    asked += "print(pairs(shapes.captions('held_out'), 300))"
    environment = {**os.environ, "PYTHONHASHSEED": "4"}
    said = subprocess.run([sys.executable, "-c", asked], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.strip() == str(pairs(HELD_OUT, 300)), said.stderr

"""A term, a reward, a monitor, a data source and a method, each added from outside by one python file and one yaml."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import TINY_DATA, TINY_RUN, compose, fingerprint, network_of

from dollar.cli.build.planning import not_counted_of, outline_of, setup_of
from dollar.models.outline import measure
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.parallel.world import World
from dollar.planning.memory import Setup, checkpoint_bytes, roles
from dollar.training.loop import Loop


class Outside:
    """A folder of somebody else's that holds modules, and yamls below conf/, which hydra's search path has."""

    def __init__(self, folder: Path, teacher: Teacher) -> None:
        self.folder, self.teacher = folder, teacher
        self.loops: list[Loop] = []

    def add(self, group: str, yaml: str, python: str) -> ModuleType:
        """Write outside_<group>.py and conf/<group>/mine.yaml; returns the module."""
        (self.folder / f"outside_{group}.py").write_text(dedent(python))
        (self.folder / "conf" / group).mkdir(parents=True)
        (self.folder / "conf" / group / "mine.yaml").write_text(dedent(yaml))
        importlib.invalidate_caches()
        return importlib.import_module(f"outside_{group}")

    def composed(self, name: str, *overrides: str, data: tuple[str, ...] = TINY_DATA) -> Any:
        """The configuration of a command with these."""
        given = [o for o in TINY_RUN if not (o.startswith("reward.") and "reward=mine" in overrides)]
        places = (f"hydra.searchpath=[file://{self.folder / 'conf'}]", f"teacher.folder={self.teacher.folder}")
        return compose(name, *given, *data, *places, *overrides)

    def planned(self, *overrides: str) -> Setup:
        """What launch/plan.py would count with these."""
        config = self.composed("plan", *overrides)
        outline = outline_of(config)
        return setup_of(config, outline, measure(outline, torch.float32))

    def loop(self, *overrides: str, data: tuple[str, ...] = TINY_DATA) -> Loop:
        """The loop that launch/train.py would build with these."""
        from dollar.cli.build.loop import build_run

        config = self.composed("train", *overrides, data=data)
        folder = self.folder / f"run{len(self.loops)}"
        self.loops.append(build_run(config, World(), self.teacher, folder, 0).loop)
        return self.loops[-1]

    def resumed(self, *overrides: str, data: tuple[str, ...] = TINY_DATA) -> tuple[Loop, Loop]:
        """A run of four cycles, and one that was ended after two and gone on with from its checkpoint."""
        whole, first, second = (self.loop("cycles=2", *overrides, data=data) for _ in range(3))
        whole.timetable.cycles = second.timetable.cycles = 4
        assert whole.train() and first.train()
        second.load(checkpoint.load(checkpoint.newest(first.folder / "checkpoints")))
        assert second.cycle == 2 and second.train()
        return whole, second


@pytest.fixture
def outside(tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    monkeypatch.syspath_prepend(tmp_path)
    found = Outside(tmp_path, teacher)
    yield found
    for loop in found.loops:
        loop.log.close()
    for name in [name for name in sys.modules if name.startswith("outside_")]:
        del sys.modules[name]


def assert_alike(whole: Loop, resumed: Loop) -> None:
    """Two runs are bitwise at the same state."""
    (tensors, plain), (others, other_plain) = whole.state(), resumed.state()
    assert tensors.keys() == others.keys() and plain["parts"] == other_plain["parts"]
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


# A term with a learner of its own

GAN = """
    import torch
    from torch import nn
    from torch.nn.functional import softplus

    from dollar.losses.term import Cost, Needs


    class Gan:
        needs = Needs(clips=True)

        def __init__(self, beta, width):
            self.beta, self.width = beta, width

        def check(self, samplers):
            pass

        def cost(self, steps):
            return Cost()

        def network(self, host):
            first, last = nn.Conv3d(host.latent_shape[0], self.width, 3, padding=1), nn.Conv3d(self.width, 1, 1)
            self.critic = nn.Sequential(first, nn.SiLU(), last)
            return self.critic

        def judge(self, x):
            return self.critic(x).flatten(1).mean(1)

        def loss(self, context, sample):
            return softplus(-self.judge(sample.x_hat))

        def fit(self, context, sample):
            return softplus(-self.judge(context.x_0)) + softplus(self.judge(sample.x_hat))
"""
GAN_YAML = """
    # @package _global_
    defaults:
      - dollar
      - _self_
    gan:
      _target_: outside_loss.Gan
      beta: 0.2
      width: 8
    terms:
      gan: ${gan}
    optim:
      gan: {lr: 1.0e-3, betas: [0.5, 0.9], weight_decay: 0.0}
"""


@pytest.fixture
def gan(outside: Outside) -> Outside:
    outside.add("loss", GAN_YAML, GAN)
    return outside


def test_a_term_with_a_network_of_its_own_learns(gan: Outside) -> None:
    """Its first update is AdamW's on the samples of the student's turn; the student's has its weight's share."""
    loop = gan.loop("loss=mine", "log.gradients_every=1", "cycles=2")
    term = loop.method.run.objective.terms["gan"]
    assert loop.learners["gan"].parameters == dict(term.critic.named_parameters())
    before = {name: p.detach().clone() for name, p in term.critic.named_parameters()}
    logged = loop.run_cycle(0)
    assert {"loss/gan", "grad_norm/gan", "skipped/gan", "time/gan", "cosine/vsd_gan"} <= logged.keys()

    after = {name: p.detach().clone() for name, p in term.critic.named_parameters()}
    (drawn,) = loop.method.student.drawn
    with torch.no_grad():
        for name, p in term.critic.named_parameters():
            p.copy_(before[name])
    assert logged["loss/gan"] == pytest.approx(float(term.loss(drawn.context, drawn.sample).mean().detach()), rel=1e-5)
    parameters = list(term.critic.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0)
    term.fit(drawn.context, drawn.sample).mean().backward()
    assert logged["grad_norm/gan"] == pytest.approx(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)), rel=1e-5)
    optimizer.step()
    for name, p in term.critic.named_parameters():
        torch.testing.assert_close(p.detach(), after[name])
        assert not torch.equal(p, before[name])


def test_a_terms_network_is_saved_and_goes_on_exactly(gan: Outside) -> None:
    whole, resumed = gan.resumed("loss=mine")
    assert_alike(whole, resumed)
    tensors, plain = whole.state()
    assert "gan" in plain["parts"]
    assert {"gan/0.weight", "gan/optim/0.weight/exp_avg", "gan/optim/0.weight/exp_avg_sq"} <= tensors.keys()


def test_the_buffers_of_a_terms_network_go_on_exactly(outside: Outside) -> None:
    spectral = GAN.replace(
        "nn.SiLU(), last)", "nn.SiLU(), nn.utils.parametrizations.spectral_norm(last), nn.BatchNorm3d(1))"
    )
    outside.add("loss", GAN_YAML, spectral)
    whole, resumed = outside.resumed("loss=mine")
    assert_alike(whole, resumed)
    tensors = whole.state().tensors
    assert "method/network gan/3.running_mean" in tensors
    # ... and the planner counts them, with the network's weights and moments.
    assert not_counted_of(outside.composed("plan", "loss=mine")) == ["the network of gan"], "nor does its cost tell it"
    setup = outside.planned("loss=mine")
    assert sum(t.nbytes for t in tensors.values()) == checkpoint_bytes(setup)
    own = [*whole.learners["gan"].tensors, *whole.method.run.networks["gan"].buffers()]
    assert next(r for r in roles(setup) if r.name == "network of gan").weights == sum(t.nbytes for t in own)


def test_an_update_starts_without_the_gradients_of_other_turns(gan: Outside) -> None:
    """A term that runs the student itself carries its loss back through whatever network it uses."""
    norms = []
    for stray in (False, True):
        loop = gan.loop("loss=mine", "cycles=2")
        if stray:
            for p in loop.learners["gan"].tensors:
                p.grad = torch.ones_like(p)
        norms.append(loop.run_cycle(0)["grad_norm/gan"])
    assert norms[0] == norms[1]


def test_a_terms_network_learns_the_same_from_micro_batches(gan: Outside) -> None:
    """Also while the student isn't updated yet, and where the term has an update of its own."""
    settings = ("loss=mine", "cycles=2", "beta_cd=0", "beta_ft=0", "fake_warmup=1")
    found = []
    for size in ("null", "1", "3"):
        loop = gan.loop(*settings, f"parallel.micro_batch={size}")
        loop.method.run.objective.terms["gan"].every = 1
        assert loop.train()
        found.append(torch.cat([p.detach().flatten() for p in loop.learners["gan"].tensors]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_a_term_without_its_optimizer_is_a_sentence(outside: Outside) -> None:
    outside.add("loss", GAN_YAML.partition("    optim:")[0], GAN)
    with pytest.raises(ValueError, match=r"the term gan has a network of its own, but there is no optim\.gan"):
        outside.loop("loss=mine")


# A reward

BRIGHT = """
    SEEN = []


    class Brightness:
        def __init__(self, scale):
            self.scale = scale

        def score(self, videos, prompts):
            SEEN.append(self.scale * videos.flatten(1).mean(1))
            return SEEN[-1]
"""


def test_a_reward(outside: Outside) -> None:
    module = outside.add("reward", "_target_: outside_reward.Brightness\nscale: 3.0\n", BRIGHT)
    loop = outside.loop("reward=mine", "lrm.clips=4", "cycles=1", "log.gradients_every=0")
    trials = len(module.SEEN)
    logged = loop.run_cycle(0)
    scores = [score for part in module.SEEN[trials:] for score in part.tolist()]
    assert len(scores) == 8  # four real clips, one by one, and four of the student's
    assert logged["reward/true"] == pytest.approx(sum(module.SEEN[-1].tolist()) / 4, rel=1e-5)
    assert logged["reward/data"] == pytest.approx(sum(scores[:4]) / 4, rel=1e-5)


# A monitor

ENOUGH = """
    from dollar.training.monitors.monitor import Verdict


    class Enough:
        prefers_kept = False

        def __init__(self, name, looks):
            self.name, self.looks, self.seen = name, looks, []

        def check(self, scores):
            if self.name not in scores:
                raise ValueError(f"enough looks at {self.name}; there is {', '.join(scores)}")

        def look(self, cycle, scores):
            self.seen.append([cycle, scores[self.name]])
            enough = len(self.seen) >= self.looks
            return Verdict(ended=f"{self.looks} looks are enough" * enough, scalars={"enough/looks": len(self.seen)})

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = list(state["seen"])
"""


def test_a_monitor_ends_the_run_and_is_part_of_its_state(outside: Outside) -> None:
    yaml = "enough:\n  _target_: outside_monitors.Enough\n  name: reward_4\n  looks: 3\n"
    outside.add("monitors", yaml, ENOUGH)
    settings = ("monitors=mine", "validation.every=1", "beta_ft=0", "beta_cd=0", "cycles=2")
    first, second = outside.loop(*settings), outside.loop(*settings)
    assert first.train() and not first.ended
    state = checkpoint.load(checkpoint.newest(first.folder / "checkpoints"))
    assert [cycle for cycle, _ in state.plain["parts"]["monitor enough"]["seen"]] == [1, 2]
    second.timetable.cycles = 9
    second.load(state)
    assert second.train() and second.cycle == 3 and second.ended == "3 looks are enough"
    ended = checkpoint.load(checkpoint.newest(second.folder / "checkpoints"))
    assert ended.plain["cycle"] == 3 and ended.plain["parts"]["loop"]["ended"] == "3 looks are enough"
    assert '"enough/looks": 3' in (second.folder / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"enough looks at beauty_4; there is reward_4"):
        outside.loop(*settings, "monitors.enough.name=beauty_4")


# A data source

NOISE = """
    import torch

    from dollar.data.latents import Batch


    class Noise:
        has_latents = True

        def __init__(self, fit, prompts):
            self.captions, self.shape, self.seed, self.told = prompts, fit.shape, fit.seed, []

        def __len__(self):
            return len(self.captions)

        def batch(self, samples, latents=True):
            places = [i % len(self) for i in samples]
            drawn = [torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed + p)) for p in places]
            stacked = torch.stack(drawn) if latents else None
            return Batch([self.captions[p] for p in places], stacked, [(p, 0) for p in places])

        def ahead(self, samples):
            self.told.append(list(samples))

        def identity(self):
            return {"prompts": len(self)}
"""
NOISE_YAML = """
    samples:
      _target_: outside_data.Noise
      _partial_: true
      prompts: [a red circle, a blue square, a green circle]
    held_out: null
"""


def test_a_data_source(outside: Outside) -> None:
    outside.add("data", NOISE_YAML, NOISE)
    whole, resumed = outside.resumed(data=("data=mine",))
    assert_alike(whole, resumed)
    # Four clips a cycle for the student and two that are scored, of this cycle and the next.
    assert [len(samples) for samples in whole.data.told] == [12, 12, 12, 6]
    assert "loss/cd" in (whole.folder / "metrics.jsonl").read_text()
    state = checkpoint.load(checkpoint.newest(whole.folder / "checkpoints"))
    with pytest.raises(ValueError, match=r"begun on other data \(prompts 3 then, 2 now\)"):
        outside.loop("data.samples.prompts=[a red circle,a dot]", data=("data=mine",)).load(state)


# A method of one turn

REGRESSION = """
    from dollar.diffusion.schedule import diffuse, mean_flat
    from dollar.parallel.checkpoint import State
    from dollar.training.turn import Pullback, Turn


    class Regression:
        def __init__(self, run, weight):
            self.run, self.weight, self.logged, self.seen = run, weight, {}, 0

        def begin(self, cycle, progress):
            self.logged = {}

        def turns(self, cycle):
            return [Turn("regression", "student", self.losses, stepped=self.run.moved)]

        def losses(self, when):
            draws, schedule = self.run.draws(when.cycle), self.run.teacher.schedule
            for micro in self.run.micro_batches(draws, latents=True):
                t = schedule.uniform(micro.draws.uniform("time"), 0.02, 0.98)
                x_t = diffuse(micro.x_0, micro.draws.normal("noise", self.run.latent_shape), t, schedule)
                loss = self.weight * mean_flat((self.run.student(x_t, t, micro.condition) - micro.x_0) ** 2).mean()
                self.logged["loss/regression"] = float(loss.detach())
                self.seen += len(micro.prompts)
                yield Pullback("regression", loss, loss.detach().new_full((), micro.share))

        def samples(self, cycle):
            return list(self.run.draws(cycle).indices)

        def state(self):
            return State({}, {"seen": self.seen})

        def load(self, state):
            self.seen = state.plain["seen"]
"""


def test_a_method_of_one_turn(outside: Outside) -> None:
    """It trains the student alone, by the loss that it brings; nothing else learns, and resuming is exact."""
    yaml = "_target_: outside_method.Regression\n_partial_: true\nweight: 2.0\n"
    outside.add("method", yaml, REGRESSION)
    alone = ("method=mine", "beta_vsd=0", "beta_ft=0", "reward._target_=null", "optim.student.lr=1e-3")
    whole, resumed = outside.resumed(*alone)
    assert_alike(whole, resumed)
    assert list(whole.learners) == ["student"] and whole.state().plain["parts"]["method"] == {"seen": 16}
    fresh = outside.loop(*alone)
    assert not torch.equal(fingerprint(network_of(fresh, "student")), fingerprint(network_of(whole, "student")))
    first = fresh.run_cycle(0)
    assert {"loss/regression", "grad_norm/student", "time/regression"} <= first.keys()
    assert fresh.run_cycle(0)["loss/regression"] < first["loss/regression"]  # of the very same draws


def test_the_command_line_takes_them(outside: Outside, command: Callable) -> None:
    """Term, reward, monitor and data source at once, with keys of their own, from the command to the student."""
    outside.add("loss", GAN_YAML, GAN)
    outside.add("reward", "_target_: outside_reward.Brightness\nscale: 3.0\n", BRIGHT)
    outside.add("monitors", "enough:\n  _target_: outside_monitors.Enough\n  name: reward_4\n  looks: 3\n", ENOUGH)
    outside.add("data", NOISE_YAML, NOISE)
    tiny = [word for word in TINY_RUN if not word.startswith(("reward.", "validation.every="))]
    choices = ("loss=mine", "reward=mine", "monitors=mine", "data=mine", "validation.every=1")
    keys = ("gan.width=4", "optim.gan.lr=1e-2", "reward.scale=2.0", "monitors.enough.looks=1")
    places = (f"teacher.folder={outside.teacher.folder}", f"runs={outside.folder}", "run=own")
    given = ("--config-dir", str(outside.folder / "conf"), *tiny, *choices, *places)
    said = command("train", *given, *keys)
    assert said.code == 0, said.err
    assert (outside.folder / "own" / "student" / "student.json").is_file()
    tensors, plain = checkpoint.load(checkpoint.newest(outside.folder / "own" / "checkpoints"))
    assert plain["cycle"] == 1 and plain["parts"]["loop"]["ended"] == "1 looks are enough"
    assert len(tensors["gan/0.bias"]) == 4
    again = command("train", *given, *keys)
    assert again.code == 0 and "is finished: 1 of 3 cycles. It ended early: 1 looks are enough." in again.out
    for mistake, words in (
        ("gan.widht=3", "the nearest is 'gan.width'"),
        ("gan.width=wide", "a whole number"),
        ("loss=mien", "the nearest is 'mine'"),
    ):
        said = command("train", *given, mistake)
        assert said.code == 2 and words in said.err, said.err

"""The plan of a set-up: networks without weights, forwards as a run makes them, bytes as a trainer holds them."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPT, TINY_DATA, TINY_RUN, Said, compose
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dollar.benchmarks.memory import Workload
from dollar.benchmarks.memory import count as count_bytes
from dollar.cli.build.planning import cycle_of, not_counted_of, setup_of
from dollar.diffusion.draws import Draws
from dollar.losses.term import Cost
from dollar.models.outline import ForwardCost, Outline, measure, outline
from dollar.models.small_decoder import SmallDecoder
from dollar.models.teacher import Teacher
from dollar.parallel.shard import trainable_copy
from dollar.parallel.world import World
from dollar.planning import report
from dollar.planning.memory import (
    FLOAT,
    Setup,
    checkpoint_bytes,
    elements,
    enough,
    fewest,
    kept_bytes,
    memory,
    remedies,
    roles,
    way_to_fit,
)
from dollar.planning.work import Cycle, Forwards, TermWork, forwards, most_kept, validations
from dollar.training.comparison import GradientComparison
from dollar.training.loop import Loop

PUBLISHED = {
    "cogvideox_2b": 1_693_783_872,
    "cogvideox_5b": 5_570_283_072,
    "cogvideox_1_5_5b": 5_570_676_352,
    "wan_2_1_1_3b": 1_418_996_800,
    "wan_2_1_14b": 14_288_491_584,
    "wan_2_2_ti2v_5b": 4_999_787_712,
    "ltx_video_2b": 1_923_385_472,
    "hunyuanvideo": 12_821_012_544,
}
PAPER = {
    "vsd": TermWork("vsd", lambda steps: Cost(teacher=2, fake=1), fake=True),
    "cd": TermWork("cd", lambda steps: Cost(student=1, student_gradient=1, teacher=10, kept=1), sample=False),
    "ft": TermWork("ft", lambda steps: Cost()),
}
THROUGH = TermWork("ft", lambda steps: Cost(teacher_gradient=1, kept=2), through=True)
APART = PAPER["ft"]._replace(apart=True)
SMALL = Setup(
    shapes=[(8, 4), (3, 5), (7,)],
    blocks=[[(8, 4)]],
    lrm=[(5, 5)],
    frozen={"autoencoder": 100, "text encoder": 1000},
    processes=2,
    batch=8,
    outside=10,
    inputs=20,
    inside=3000,
    largest=500,
    terms=2,
    compares=True,
)


def settings(*overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose("plan", *overrides).teacher, resolve=True)


def resident() -> int:
    """Bytes of main memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# Networks without weights


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_a_published_teacher_is_counted_without_its_folder(name: str, count: int) -> None:
    found = outline(settings(f"teacher={name}"))
    assert sum(p.numel() for p in found.network.parameters()) == elements(found.shapes) == count
    assert all(t.is_meta for t in (*found.network.parameters(), *found.network.buffers()))
    assert "states" in found.source


def test_the_largest_teacher_takes_no_memory() -> None:
    outline(settings("teacher=wan_2_1_1_3b"))  # what libraries need is there now
    before = resident()
    found = outline(settings("teacher=wan_2_1_14b"))
    work = measure(found, torch.bfloat16)
    assert resident() - before < 2**28  # of 53 GiB
    assert all(t.is_meta for t in (*found.network.parameters(), *found.network.buffers()))
    # 24 d^2 with the MLP's ratio of 2.7 a token, text of 512 tokens asked by each, and all pairs of tokens.
    d, n = 5120, 32_760
    block = 2 * n * (6 * d * d + 2 * d * 13_824) + 2 * 512 * 2 * d * d + 4 * n * n * d + 4 * n * 512 * d
    assert work.tokens == n
    assert work.flops == pytest.approx(40 * block, rel=0.01)


@pytest.mark.parametrize(("frames", "tokens", "flops"), [(33, 7_920, None), (40, 9_600, 48.3e12)])
def test_work_of_a_forward_at_the_papers_size(frames: int, tokens: int, flops: float | None) -> None:
    found = outline(settings("experiment=dollar_paper"))
    assert found.latent_shape == (16, 33, 24, 40)
    found.latent_shape = (16, frames, 24, 40)
    work = measure(found, torch.bfloat16)
    d, n = 1920, tokens + 226
    assert work.tokens == tokens
    assert work.flops == pytest.approx(30 * (24 * n * d * d + 4 * n * n * d), rel=0.01)
    assert flops is None or work.flops == pytest.approx(flops, rel=0.001)


def test_a_folder_of_configs_is_enough_and_comes_before_what_is_stated(teacher: Teacher, tmp_path: Path) -> None:
    for file in teacher.folder.rglob("*.json"):
        copy = tmp_path / file.relative_to(teacher.folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(file, copy)
    given = settings(*TINY_RUN[:7], f"teacher.folder={tmp_path}")
    found = outline(given)
    real = [tuple(p.shape) for p in teacher.denoiser.network.parameters()]
    assert (found.shapes, found.latent_shape) == (real, teacher.latent_shape)
    models = {"vae": [teacher.codec.vae], "text_encoder": teacher.text.models}
    assert found.frozen == {n: sum(p.numel() for m in ms for p in m.parameters()) for n, ms in models.items()}
    assert list(outline({**given, "text": "stored"}).frozen) == ["vae"]
    told = json.loads((tmp_path / "transformer" / "config.json").read_text())
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({**told, "num_layers": 3}))
    assert len(outline(given).block_shapes) == 3
    with pytest.raises(ValueError, match="num_layers is 3 there and 2 in"):
        outline({**given, "states": {"transformer": {"num_layers": 2}}})


def test_a_teacher_that_is_nowhere_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not here, and teacher.states has no transformer"):
        outline(settings(f"teacher.folder={tmp_path}/nowhere"))
    stated = settings("teacher=cogvideox_2b")
    with pytest.raises(ValueError, match="cell is 16 there and 32"):
        outline({**stated, "states": {**stated["states"], "cell": 32}})


# What a forward keeps


class Saved:
    """Counts the bytes that a forward of a real network saves, weights aside."""

    def __init__(self, network: nn.Module) -> None:
        self.seen = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
        self.held: list[Tensor] = []
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.seen:
            self.seen.add(tensor.untyped_storage().data_ptr())
            self.held.append(tensor)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


@pytest.fixture(scope="module")
def tiny_outline(teacher: Teacher) -> Outline:
    return outline(settings(*TINY_RUN[:7], f"teacher.folder={teacher.folder}"))


@pytest.mark.parametrize(("recompute", "lora"), [(False, None), (True, None), (False, 2)])
def test_activations_are_those_of_a_real_network(
    teacher: Teacher, tiny_outline: Outline, recompute: bool, lora: int | None
) -> None:
    network = trainable_copy(teacher, World(), recompute, lora)
    saved = Saved(network)
    condition = teacher.text(["a small red circle moving left"])
    x = torch.zeros(1, *teacher.latent_shape)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
        network(x, torch.zeros(1), condition)
    work = measure(tiny_outline, torch.float32, lora)
    # Recomputing, a block's inside is made again in the backward pass. A GPU's attention keeps a few bytes of its own.
    kept = work.outside + work.inputs + (0 if recompute else work.inside)
    # Of a LoRA's first block a few inputs are not needed, for nothing trained comes before them.
    assert saved.bytes == pytest.approx(kept, rel=1e-3 if lora is None else 0.025)
    assert lora or work.largest == work.inside // len(network.blocks)


def test_a_loras_forward_and_backward(teacher: Teacher, tiny_outline: Outline) -> None:
    """The operations of a real network on the CPU, those of attention aside, which has no count there."""
    network = trainable_copy(teacher, World(), lora=2)
    x, t = torch.zeros(1, *teacher.latent_shape, requires_grad=True), torch.zeros(1)
    condition = teacher.text([PROMPT])
    condition.embeddings.requires_grad_()  # as inside a deep network, where all but the first layers' inputs do
    with FlopCounterMode(display=False) as forward:
        out = network(x, t, condition)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    work, whole = (measure(tiny_outline, torch.float32, rank) for rank in (2, None))
    d, tokens, text, blocks = 32, work.tokens, 12, 2
    pairs = blocks * 4 * (tokens + text) ** 2 * d
    assert work.flops - pairs == forward.get_total_flops()
    # Nothing goes back to the time, whose layers are a small part of a large network.
    of_time = 2 * 16 * ((32 + 16) + 2 * blocks * (6 * d + 2) + 2 * d)  # its embedding, and each norm's with its LoRA
    assert work.backward - 2 * pairs - of_time == backward.get_total_flops()
    assert whole.backward == 2 * whole.flops and work.backward < 1.7 * work.flops < 1.9 * whole.flops


# Forwards of a cycle


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 46.5),
        ({"checkpointing": True}, 53.5),
        ({"simulate": False}, 39),
        ({"steps": [2]}, 41.5),
        ({"steps": [1]}, 39),
        ({"steps": [4, 2, 1]}, (46.5 + 41.5 + 39) / 3),
        ({"simulate": False, "ft": APART}, 39 + 3),
        ({"ft": APART}, 46.5 + 3 + 1.5),
        ({"vsd": None, "ft": APART}, (1 + 3 + 10) + (1.5 + 1) + (1.5 + 3)),
        ({"vsd": None, "ft": None}, 1 + 3 + 10),
        ({"ft": THROUGH}, 46.5 + 2),
        ({"ft": THROUGH, "checkpointing": True}, 53.5 + 3),
        ({"ft": THROUGH, "backward": 1.1}, 46.5 - 0.9 * 2 + 2),
        ({"roll": TermWork("roll", lambda steps: Cost(steps, steps - 1), sample=False)}, 46.5 + 4 + 3 * 3),
    ],
)
def test_forwards_of_the_papers_cycle(changes: dict[str, Any], count: float) -> None:
    own = {key: value for key, value in changes.items() if key in Cycle.__dataclass_fields__}
    terms = {key: value for key, value in (PAPER | changes).items() if key not in own}
    cycle = Cycle(**{"steps": [4], "terms": [term for term in terms.values() if term]} | own)
    assert forwards(cycle).total == pytest.approx(count)


def test_a_terms_network_as_large_as_the_teacher_is_spread_with_the_student() -> None:
    setup = replace(SMALL, networks={"a": [(8, 3)], "b": [(8, 3)]}, spread=["b"], processes=4, batch=8)
    assert [role.weights for role in roles(setup) if role.name.startswith("network")] == [8 * 3 * 4, 2 * 3 * 4]


def test_a_discriminators_forwards_are_not_said_to_be_left_out() -> None:
    overrides = ("beta_adversarial=1", "adversarial.features=own", "beta_ft=0")
    assert not_counted_of(compose("plan", *TINY_RUN, *TINY_DATA, *overrides)) == []


def test_the_longest_branch_is_what_activations_are_of() -> None:
    draft = TermWork("draft", lambda steps: Cost(kept=min(2, steps)), sample=False)
    assert most_kept(Cycle([4, 1], [*PAPER.values()])) == 1 and most_kept(Cycle([4, 1], [draft])) == 2
    assert memory(replace(SMALL, kept=2)).activations == 2 * memory(SMALL).activations


CYCLES = {
    "four steps": ("student.steps=[4]",),
    "two steps": ("student.steps=[2]",),
    "one step": ("student.steps=[1]",),
    "all three": ("student.steps=[4,2,1]",),
    "noised data": ("student.steps=[4]", "student.input=noised_data"),
    "without CD": ("beta_cd=0",),
    "without VSD": ("beta_vsd=0",),
    "without FT": ("beta_ft=0", "reward=none"),
    "FT apart": ("student.steps=[4]", "ft.update=separate"),
    "FT apart and alone": ("beta_vsd=0", "beta_cd=0", "ft.update=separate"),
    "no guidance": ("vsd.guidance_scale=1", "cd.guidance_scale=1"),
    "the teacher's target": ("cd.target=teacher", "cd.m=3"),
    "a pull": ("beta_pull=1", "pull.steps=2"),
    "a discriminator": ("beta_adversarial=1", "adversarial.features=teacher", "beta_ft=0"),
    "a discriminator of its own, smoothed seldom": (
        "beta_adversarial=1",
        "adversarial.features=own",
        "adversarial.smooth_every=3",
        "beta_ft=0",
    ),
    "an anchor": (
        "beta_pull=1",
        "pull.steps=2",
        "pull.at=first",
        "pull.until=next",
        "vsd.at=later",
        "student.between=ddim",
        "student.steps=[4]",
    ),
    "for one step alone": ("student.steps=[4,1]", "vsd.step_counts=[1]", "cd.step_counts=[4]", "beta_ft=0"),
    "policy gradient": ("loss=ddpo", "student.steps=[4,2]", "beta_ddpo=1"),
    "recomputing": ("parallel.activation_checkpointing=true",),
    "through the teacher": ("ft.through=teacher",),
    "through the teacher, recomputing": ("ft.through=teacher", "parallel.activation_checkpointing=true"),
    "fitted first": ("student.steps=[4]", "lrm.first=true"),
    "through the fake score": ("ft.through=fake", "ft.update=separate", "ft.accumulate=2"),
}


def count_work(trainer: Loop, found: Counter[str]) -> None:
    """Count each network's forwards and twice its backward passes, in batches, where its first block works."""
    run = trainer.method.run
    denoisers = {"teacher": run.teacher, **{name: role.denoiser for name, role in run.roles.items()}}
    networks = {name: denoiser.network for name, denoiser in denoisers.items()}
    own = [("own", judge.network) for judge in run.networks.values() if judge.trained]
    for name, network in [*networks.items(), *own]:
        block = next(iter(network.blocks))

        def forward(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            found[name] += len(kwargs["temb"] if "temb" in kwargs else args[2])

        def after(module: nn.Module, args: Any, output: Sequence[Tensor], name: str = name) -> None:
            if not output[0].requires_grad:
                return
            trained = [p.expand_as(p).grad_fn.next_functions[0][0] for p in module.parameters() if p.requires_grad]

            def back(gradient: Tensor) -> None:  # to the input alone, or to weights, too
                found[name] += len(gradient) * (1 + any(map(torch._C._will_engine_execute_node, trained)))

            output[0].register_hook(back)

        block.register_forward_pre_hook(forward, with_kwargs=True)
        block.register_forward_hook(after)


@pytest.mark.parametrize("name", CYCLES)
def test_forwards_are_those_that_a_run_makes(
    name: str, build: Callable[..., Loop], teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("cycles=30", "log.gradients_every=0", "lrm.warmup=1", *CYCLES[name])
    trainer = build(*overrides)
    cycle = cycle_of(compose("plan", *TINY_RUN, *TINY_DATA, *overrides))

    def every_depth(self: Draws, purpose: str, high: int) -> int:
        """Step counts and depths in turn: over twelve cycles each update has all of them, equally often."""
        place = self.turn // trainer.method.fake_updates
        return (place // len(cycle.steps) if purpose == "depth" else place) % high

    def enlarged(z: Tensor) -> Tensor:
        """Frames for the reward at no cost: no forward that is counted depends on them."""
        return nn.functional.interpolate(z[:, :3], size=(4 * z.shape[2] - 3, 4 * z.shape[3], 4 * z.shape[4]))

    monkeypatch.setattr(Draws, "shared_integer", every_depth)
    monkeypatch.setattr(teacher.codec, "_decode", enlarged)
    trainer.run_cycle(0)  # warms the latent reward model
    found: Counter[str] = Counter()
    count_work(trainer, found)
    for number in range(1, 13):
        trainer.run_cycle(number)
    batches = 12 * trainer.method.run.batch
    assert {n: found[n] / batches for n in Forwards._fields} == pytest.approx(forwards(cycle)._asdict())


# Bytes


def test_a_share_is_that_of_the_fullest_process() -> None:
    shapes = [(8, 4), (3, 5), (7,), (1, 6, 2), (30, 2, 2)]
    for processes in (1, 2, 3, 8):
        chunks = [torch.empty(shape, device="meta").chunk(processes) for shape in shapes]
        held = [sum(c[rank].numel() for c in chunks if rank < len(c)) for rank in range(processes)]
        assert elements(shapes, processes) == max(held)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("ft.update=separate", "ft.accumulate=3"),
        ("beta_vsd=0",),
        ("beta_ft=0",),
        ("lrm.backbone=teacher", "lrm.blocks=1", "lrm.clips=4"),
        ("beta_adversarial=1",),
        ("lrm.backbone=pixels", "lrm.smooth=1", "lrm.clips=9", "decoder.memory=2"),
        ("loss=refl", "rg.decoder=small", "beta_ft=0", "reward._target_=test_steering.Smooth", "decoder.memory=2"),
        ("ft.update=separate", "ft.accumulate=1", "ft.optimizer=own"),
        ("lrm.temporal=frames", "reward._target_=dollar.rewards.colourfulness.Colourfulness"),
        ("student.lora=2",),
        ("student.lora=2", "ft.update=separate", "ft.accumulate=3", "beta_vsd=0"),
    ],
)
def test_bytes_are_those_that_a_trainer_holds(
    overrides: tuple[str, ...], build: Callable[..., Loop], teacher: Teacher, tiny_outline: Outline
) -> None:
    every = ("lrm.warmup=0", "lrm.memory=2", *overrides)
    trainer = build(*every)
    config = compose("plan", *TINY_RUN, *TINY_DATA, *every)
    setup = setup_of(config, tiny_outline, measure(tiny_outline, torch.float32))
    gradients: dict[str, int] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            gradients[name] = sum(p.grad.nbytes for p in trainer.learners[name].tensors)

        return hook

    for name, learner in trainer.learners.items():
        for optimizer in learner.optimizers:
            optimizer.register_step_pre_hook(look(name))
    for cycle in range(2):  # as many as the latent reward model remembers
        trainer.run_cycle(cycle)
    found = {role.name: role for role in roles(setup)}
    lora = config.student.lora is not None
    names = {"student": "student's LoRA" if lora else "student", "fake": "fake score", "lrm": "latent reward model"}
    names["decoder"] = "small decoder"
    gathered = sum(g.nbytes for kept in trainer.gathered.values() for g in kept.held)
    second = trainer.learners.pop("student_ft", None)
    further = {"student": [] if second is None else second.optimizers}
    for name, learner in trainer.learners.items():
        role = found.pop(names.get(name, f"network of {name}"))
        own = learner.tensors
        optimizers = [*learner.optimizers, *further.get(name, [])]
        assert role.parameters == sum(p.numel() for p in own)
        assert role.weights == sum(p.nbytes for p in own)
        assert role.gradients == gradients[name] + (gathered if name == "student" else 0)
        assert role.moments == sum(t.nbytes for o in optimizers for s in o.state.values() for t in s.values())
    if second is not None:
        trainer.learners["student_ft"] = second
    rest = {
        "averaged weights": trainer.average.average.values(),
        "teacher": trainer.method.run.teacher.network.parameters(),
        "autoencoder": teacher.codec.vae.parameters(),
        "text encoder": [p for model in teacher.text.models for p in model.parameters()],
    }
    if lora:
        network = trainer.method.run.student.network
        rest["student's frozen weights"] = [p for p in network.parameters() if not p.requires_grad]
    if (decoder := trainer.method.run.decoder) is not None:
        rest["clips of the small decoder"] = [t for shown in decoder.past for t in shown[:2]]
    if config.beta_ft > 0:
        past = trainer.method.run.surrogate.past
        rest["latents with rewards"] = [t for o in past for t in o[2:] if t is not None]
    assert {name: role.held for name, role in found.items()} == {n: sum(t.nbytes for t in ts) for n, ts in rest.items()}
    tensors = trainer.state().tensors
    assert sum(t.nbytes for t in tensors.values()) == checkpoint_bytes(setup)


@pytest.mark.parametrize("frames", [2, "all"])
def test_pixels_of_a_small_decoder_are_about_what_a_gradient_keeps_and_makes(
    frames: int | str, tiny_outline: Outline
) -> None:
    given = (
        "loss=refl",
        "rg.decoder=small",
        f"rg.frames={frames}",
        "beta_ft=0",
        "reward._target_=test_steering.Smooth",
    )
    config = compose("plan", *TINY_RUN, *TINY_DATA, *given)
    setup = setup_of(config, tiny_outline, measure(tiny_outline, torch.float32))
    channels, count = tiny_outline.latent_shape[:2]
    with torch.device("meta"):
        decoder = SmallDecoder(channels, 4)
        x = torch.empty(1, *tiny_outline.latent_shape, requires_grad=True)
    held = None if frames == "all" else [0, count - 1]
    found = count_bytes(Workload([decoder], [x], lambda: decoder.frozen(x, held).clamp(0, 1).mean((1, 2, 3, 4))))
    assert setup.pixels == FLOAT * 3 * 32 * 32 * (count + (count if frames == "all" else 2))
    assert 0.5 < setup.pixels / (found.backward - found.held) < 1.1
    assert found.kept == pytest.approx(FLOAT * 3 * 32 * 32 * (count if frames == "all" else 2), abs=8)


def test_a_latent_reward_model_that_is_only_read_is_counted(
    build: Callable[..., Loop], teacher: Teacher, tiny_outline: Outline, tmp_path: Path
) -> None:
    first = build("lrm.warmup=0")
    first.run_cycle(0)
    first.method.run.surrogate.save(tmp_path, teacher)
    frozen = ("lrm.mode=frozen", f"lrm.path={tmp_path}", "reward._target_=null")
    run = build(*frozen)
    run.run_cycle(0)
    config = compose("plan", *TINY_RUN, *TINY_DATA, *frozen)
    setup = setup_of(config, tiny_outline, measure(tiny_outline, torch.float32))
    model = list(run.method.run.surrogate.model.parameters())
    (role,) = (role for role in roles(setup) if role.name == "latent reward model")
    assert (role.parameters, role.held) == (sum(p.numel() for p in model), sum(p.nbytes for p in model))
    assert sum(t.nbytes for t in run.state().tensors.values()) == checkpoint_bytes(setup)


def test_what_comes_on_top_of_what_is_held() -> None:
    share, held = 4 * 30, sum(role.held for role in roles(SMALL))
    found = memory(SMALL)
    assert found.activations == 4 * (10 + 20 + 3000)
    assert memory(replace(SMALL, checkpointing=True)).activations == 4 * (10 + 20 + 500)
    assert found.gathered == 4 * (54 - 32 + 3 * 32)
    assert memory(replace(SMALL, processes=1, dtype=2)).gathered == 2 * 54
    assert found.peak == held + found.gathered + found.activations + 2 * share  # two terms, while the last is carried
    quiet = memory(replace(SMALL, compares=False))
    assert quiet.peak == held + found.gathered + found.activations
    still = replace(SMALL, processes=1, outside=0, inputs=0, inside=0)
    alone = sum(role.held for role in roles(still))
    assert memory(still).peak == alone + 4 * 4 * 54  # each term, and before and after the last
    # Held whole, the gradients of the largest trained network are averaged in one message of their size.
    whole = replace(still, processes=2, shard=False, compares=False)
    assert memory(whole).peak == sum(role.held for role in roles(whole)) + 4 * 54
    lora = replace(whole, lora=[(2, 4), (3, 2)], fake=False)
    assert memory(lora).peak == sum(role.held for role in roles(lora)) + 4 * 14
    shared = {role.name: role.held for role in roles(replace(SMALL, shard_teacher=True))}
    assert shared["teacher"] == shared["averaged weights"] == 4 * (16 + 10 + 4)


def test_comparing_gradients_holds_what_the_plan_says(
    build: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch, tiny_outline: Outline
) -> None:
    """Gradients that are alive while they are compared: every tensor of theirs that is no weight or moment."""
    trainer = build("log.gradients_every=1", "lrm.warmup=0")
    trainer.run_cycle(0)
    config = compose("plan", *TINY_RUN, *TINY_DATA, "log.gradients_every=1")
    setup = setup_of(config, tiny_outline, measure(tiny_outline, torch.float32))
    count = sum(math.prod(shape) for shape in setup.shapes)
    alive: list[int] = []
    scalars = GradientComparison.scalars

    def spied(self: GradientComparison, world: World) -> dict[str, float]:
        lists = [o for o in gc.get_objects() if type(o) is list and len(o) == len(setup.shapes)]
        copies = [o for o in lists if all(type(t) is Tensor for t in o) and sum(t.numel() for t in o) == count]
        moments = [t for o in self.learner.optimizers for s in o.state.values() for t in s.values()]
        averages, gradients = trainer.average.average.values(), (p.grad for p in self.learner.tensors)
        held = {t.data_ptr() for t in (*moments, *averages, *gradients)}
        fresh = {tuple(t.data_ptr() for t in o) for o in copies if o[0].data_ptr() not in held}
        alive.append(len(fresh))
        return scalars(self, world)

    monkeypatch.setattr(GradientComparison, "scalars", spied)
    gc.collect()  # what earlier tests left
    trainer.run_cycle(1)
    # While the last term was taken down, the gradients before it were there as well.
    assert (alive[0] + 1) * 4 * count == memory(setup).comparing


# What helps


def test_the_way_to_fit_is_short_and_each_step_saves_the_most() -> None:
    peak = memory(SMALL).peak
    found = remedies(SMALL)
    assert [r.saves for r in found] == sorted((r.saves for r in found), reverse=True) and found[-1].saves > 0
    assert all(r.saves == peak - memory(r.setup).peak for r in found)
    way = way_to_fit(SMALL, 0)
    assert len(way) == 3 and len({r.setting.partition("=")[0] for r in way}) == 3
    assert way[0] == found[0] and memory(way[-1].setup).peak == peak - sum(r.saves for r in way)
    assert way_to_fit(SMALL, peak) == [] and way_to_fit(SMALL, peak - 1) == found[:1]


def test_the_fewest_processes_that_hold_a_run() -> None:
    """A batch of 8: 1, 2, 4 or 8 processes; what is held is cut among them, the clips at once stay."""
    eight = replace(SMALL, processes=8, compares=False)
    peaks = {n: memory(replace(eight, processes=n, micro_batch=1)).peak for n in (1, 2, 4, 8)}
    assert peaks[2] > peaks[4] > peaks[8]
    assert fewest(eight, peaks[4]) == 4 and fewest(eight, peaks[4] - 1) == 8 and fewest(eight, peaks[8] - 1) is None
    two = replace(eight, processes=2, micro_batch=1)
    assert enough(two, peaks[4]) == 4 and enough(two, 1) is None


def test_hours_are_of_training_and_of_validation() -> None:
    """Guided, 4 clips of the teacher in 50 steps once; 16 of the student's steps at each of 3 validations."""
    looks = validations(100, 40, False, 4, [4], 4, 50, 2)
    assert looks == (3, 16, 400) and validations(100, 0, True, 4, [4], 4, 50, 2) == (0, 0, 0)
    assert validations(80, 40, True, 4, [4, 2], 9, 50, 1, 2) == (3, 48, 200)
    assert validations(80, 40, True, 9, [4, 2], 4, 50, 1, processes=4) == (3, 3 * 6, 50)  # three of nine, one of four
    one, own = ForwardCost(10, 20, 1, 0, 0, 0, 0), ForwardCost(12, 18, 1, 0, 0, 0, 0)
    work = report.work_of(Forwards(2, 3, 5), own, one, 8, looks)
    assert work == (8 * (2 * 12 + 8 * 10), 3 * 16 * 12 + 400 * 10)
    assert work.hours(100, 4) == pytest.approx((100 * 832 / 4 + 4576) / report.SPEED / 3600)


def test_a_rank_that_no_layer_has_is_refused(tiny_outline: Outline) -> None:
    widths = [min(m.weight.shape) for m in tiny_outline.network.blocks.modules() if isinstance(m, nn.Linear)]
    assert tiny_outline.largest_rank == max(widths) and tiny_outline.lora_shapes(max(widths))
    with pytest.raises(ValueError, match=f"student.lora is {max(widths) + 1}, .* above {max(widths)}"):
        tiny_outline.lora_shapes(max(widths) + 1)


def test_a_disk_that_is_too_small_is_told() -> None:
    best = replace(SMALL, best=True)
    assert kept_bytes(SMALL, 2) == 3 * checkpoint_bytes(SMALL) and kept_bytes(best, 2) == kept_bytes(SMALL, 2) + 8 * 54
    enough_bytes = kept_bytes(SMALL, 2)
    assert "too little" not in report.disk_text(SMALL, 2, enough_bytes)
    assert "too little: give runs=FOLDER on another disk, or keep=1" in report.disk_text(SMALL, 2, enough_bytes - 1)
    assert "or keep=" not in report.disk_text(SMALL, 1, 0)
    assert "or keep=" not in report.disk_text(SMALL, 2, kept_bytes(SMALL, 1) - 1)  # nor would one be enough
    assert "or keep=3" in report.disk_text(SMALL, 5, kept_bytes(SMALL, 3))


# The command


def peak_of(said: Said) -> float:
    line = next(line for line in said.out.splitlines() if line.startswith("peak"))
    return float(line.split()[-1].replace(",", ""))


def test_the_command_names_settings_that_keep_their_word(command: Callable[..., Said]) -> None:
    shallow = ("teacher.states.transformer.num_layers=12", "teacher.frozen_dtype=bfloat16")  # as wide, in less time
    given = ("teacher=wan_2_1_14b", *shallow, "processes=8", "lrm.clips=8", "parallel.dtype=bfloat16", "memory=70")
    said = command("plan", *given)
    assert said.code == 0 and "it doesn't fit" in said.out
    plain, lora = said.out.split("or student.lora=64")
    assert peak_of(said) > 70 and plain.endswith("with which it fits\n") and lora.endswith("with which it fits\n")
    factors = 12 * 64 * (8 * 2 * 5120 + 2 * (5120 + 13_824))  # of eight layers of attention and two of the MLP
    assert f"which trains {factors:,} numbers (2.1% of the student's): about" in lora
    for text, first in ((plain, []), (lora, ["student.lora=64"])):
        lines = [line.split() for line in text.splitlines() if " saves " in line]
        assert lines
        for i in range(len(lines)) if text is plain else [len(lines) - 1]:
            taken = [word for line in lines[: i + 1] for word in line[: line.index("saves")]]
            left = float(lines[i][-1].replace(",", ""))
            assert peak_of(command("plan", *given, *first, *taken)) == pytest.approx(left, abs=0.01)


def test_the_command_plans_what_training_composes(command: Callable[..., Said]) -> None:
    train, plan = (OmegaConf.to_container(compose(name, "beta_cd=0")) for name in ("train", "plan"))
    assert {key: value for key, value in plan.items() if key not in ("processes", "memory")} == train
    fits = command("plan")
    assert fits.code == 0 and "it fits" in fits.out
    layers = "teacher.states.transformer"
    shallow = (f"{layers}.num_layers=1", f"{layers}.num_single_layers=1")
    refused = command("plan", "teacher=hunyuanvideo", *shallow)
    assert refused.code == 2 and "has no unconditional half" in refused.err
    uneven = command("plan", "processes=3")
    assert uneven.code == 2 and "batch=8 must be a multiple of the 3 processes" in uneven.err
    none = command("plan", "processes=0")
    assert none.code == 2 and "processes is 0" in none.err

"""launch/export.py: every family's student as diffusers loads and samples it by itself, LoRAs, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose, new_network
from families import FAMILIES, PROMPT, build
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dollar.export import pipeline as export
from dollar.export.student import few_steps, load_student, save_student
from dollar.models import lora
from dollar.models.teacher import Teacher
from dollar.parallel import checkpoint
from dollar.parallel.shard import trainable_copy
from dollar.parallel.world import World
from dollar.sampling.samplers import decode, make_latents

NUMBERS = {"run": "tiny", "seed": 0, "cycles": 3, "batch": 4, "beta_vsd": 1.0, "beta_cd": 0.5, "beta_ft": 0.0}
# family -> the step counts that the scheduler for four steps gives, too
SERVED = {"cogvideox_2b": [4, 2, 1], "wan_2_1": [4], "ltx": [4, 2, 1], "hunyuanvideo": [4, 2, 1]}


@pytest.fixture(scope="module", params=SERVED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny teacher's folder, built once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = build(family, tmp_path_factory.mktemp(family) / "teacher")
        return made[family]

    return folder


def changed(teacher: Teacher, by: float = 0.02, only: str = "") -> nn.Module:
    """A student whose parameters (those with `only` in their names) differ from its teacher's."""
    network = new_network(teacher)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p += by * noise if only in name else 0
    return network


def stored(teacher: Teacher, family: str, **student: Any) -> dict[str, Any]:
    """The configuration that a run of this teacher would store."""
    keys = {"timesteps": None, "steps": [4, 2, 1], "between": "renoise", "parameterization": "homogeneous", **student}
    target = f"{FAMILIES[family].module}.load"
    return {
        **NUMBERS,
        "teacher": {"_target_": target, **FAMILIES[family].settings(teacher.folder)},
        "student": keys,
        "reward": {"_target_": "dollar.rewards.shapes.ShapesVerifier"},
        "data": {"held_out": {"_target_": "dollar.data.shapes.captions", "split": "held_out"}},
    }


def save_run(run: Path, teacher: Teacher, family: str, network: nn.Module, **student: Any) -> Path:
    """A finished run's student, as launch/train.py writes it."""
    config = stored(teacher, family, **student)
    keys = config["student"]
    card = {"cycle": 3, "trained": 3, "parameterization": keys["parameterization"]}
    card |= {key: keys[key] for key in ("guided",) if key in keys}
    card |= {"teacher": config["teacher"], "config": config}
    samplers = few_steps(teacher, keys["timesteps"], keys["steps"], keys["between"])
    save_student(run / "student", teacher, network, samplers, card)
    return run


@pytest.fixture(scope="module")
def teacher(family: str, teachers: Callable) -> Teacher:
    return FAMILIES[family].load(teachers(family))


@pytest.fixture(scope="module")
def run(family: str, teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp(f"{family}-run"), teacher, family, changed(teacher))


@pytest.fixture(scope="module")
def cog(teachers: Callable) -> Teacher:
    return FAMILIES["cogvideox_2b"].load(teachers("cogvideox_2b"))


@pytest.fixture(scope="module")
def cog_run(cog: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("cog-run"), cog, "cogvideox_2b", changed(cog))


def clip(teacher: Teacher, student: Path, steps: int, seed: int) -> Tensor:
    """The frames of our own sampler from a student's folder, in [0, 1]."""
    loaded = load_student(student, teacher)
    latents = make_latents(loaded.sampler(teacher, steps), teacher, [PROMPT], [seed], show=False)
    return decode(teacher, latents, show=False)


ALONE = """
import sys, json, torch
from diffusers import DiffusionPipeline
for folder, call, prompt, seed, result in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(seed)
    torch.save(pipe(prompt, output_type="pt", **call).frames, result)
ours = {name for name in sys.modules if name.split(".")[0] == "dollar"}
assert ours <= {"dollar", "dollar.parallel", "dollar.parallel.outcome"}  # torch loads plugins of torchrun anywhere
"""


def test_the_folder_makes_our_clips_without_our_code(command: Callable, teachers: Callable, tmp_path: Path) -> None:
    """Every family's, in one process that imports diffusers alone."""
    made: list[tuple[str, Teacher, Path, Path]] = []
    for family in SERVED:
        teacher, out = FAMILIES[family].load(teachers(family)), tmp_path / family
        run = save_run(tmp_path / f"{family}-run", teacher, family, changed(teacher))
        said = exported(command, f"checkpoint={run / 'student'}", f"out={out}")
        for steps in SERVED[family]:
            assert f"{steps} steps by diffusers alone: latents and frames are equal to the bit" in said
        assert said.count("equal to the bit") == len(SERVED[family])
        card = json.loads((out / "student.json").read_text())
        assert card["steps"] == SERVED[family]
        if family == "ltx":
            assert export.call_of(teacher, 4)["frame_rate"] == 8
        made.append((family, teacher, run / "student", out))
    given = [(str(out), export.call_of(teacher, 4), PROMPT, 11, f"{out}.pt") for _, teacher, _, out in made]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ALONE, json.dumps(given)], check=True, cwd=tmp_path, env=environment)
    for family, teacher, student, out in made:
        theirs = (torch.load(f"{out}.pt") * 255).round().byte()
        assert torch.equal(theirs, clip(teacher, student, 4, 11)), family
        # ... and launch/sample.py, which reads it as a student, makes the same.
        assert torch.equal(theirs, clip(teacher, out, 4, 11)), family
        assert not torch.equal(theirs, clip(teacher, student, 4, 12)), family


def exported(command: Callable, *overrides: str) -> str:
    said = command("export", "parallel.device=cpu", *overrides)
    assert said.code == 0, said.err
    return said.out


def refused(command: Callable, *words: str, **keys: Any) -> None:
    """One sentence and a code that says no, before any weights are read."""
    said = command("export", "parallel.device=cpu", *(f"{k.replace('__', '.')}={v}" for k, v in keys.items()))
    assert said.code == 2 and "Traceback" not in said.err, said.err
    lines = [line for line in said.err.splitlines() if line.startswith("export.py: ")]
    assert len(lines) == 1, said.err
    for word in words:
        assert word in lines[0]


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


# Schedulers


@pytest.mark.parametrize(("between", "counts"), [("renoise", [2, 1]), ("ddim", [2, 1])])
def test_a_shorter_grid_has_a_scheduler_of_its_own(
    command: Callable, cog: Teacher, tmp_path: Path, between: str, counts: list[int]
) -> None:
    save_run(tmp_path, cog, "cogvideox_2b", changed(cog), between=between)
    out = exported(command, f"checkpoint={tmp_path}", f"out={tmp_path / 'out'}", "steps=2")
    assert out.count("equal to the bit") == 2
    card = json.loads((tmp_path / "out" / "student.json").read_text())
    assert (card["steps"], card["timesteps"]) == (counts, [999, 499])
    assert load_student(tmp_path / "out", cog).few_steps[2].times.tolist() == [999, 499]


def test_a_flow_by_ddim_is_equal_but_for_rounding(command: Callable, teachers: Callable, tmp_path: Path) -> None:
    teacher = FAMILIES["ltx"].load(teachers("ltx"))
    save_run(tmp_path, teacher, "ltx", changed(teacher), between="ddim", steps=[4])
    out = exported(command, f"checkpoint={tmp_path}", f"out={tmp_path / 'out'}")
    assert "4 steps by diffusers alone: latents" in out


def test_counts_whose_scheduler_differs_are_left_out(teachers: Callable) -> None:
    wan = FAMILIES["wan_2_1"].load(teachers("wan_2_1"), name="other")
    for between in ("renoise", "ddim"):
        samplers = few_steps(wan, None, [4, 2, 1], between)
        assert [list(export.served(wan, samplers, n)) for n in (4, 2, 1)] == [[4], [2], [1]]


def test_x_0_itself_can_only_be_said_to_some_schedulers(
    command: Callable, cog: Teacher, teachers: Callable, tmp_path: Path
) -> None:
    save_run(tmp_path / "cog", cog, "cogvideox_2b", changed(cog), parameterization="heterogeneous")
    assert "equal to the bit" in exported(command, f"checkpoint={tmp_path / 'cog'}", f"out={tmp_path / 'out'}")
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "sample"
    flow = FAMILIES["wan_2_1"].load(teachers("wan_2_1"))
    run = save_run(tmp_path / "wan", flow, "wan_2_1", changed(flow))
    card = json.loads((run / "student" / "student.json").read_text())
    (run / "student" / "student.json").write_text(json.dumps({**card, "parameterization": "heterogeneous"}))
    refused(command, "predicts sample", "homogeneous", checkpoint=run, out=tmp_path / "none")


# Guidance

TUNED: dict[str, Any] = {"steps": [5], "between": "ddim", "input": "noised_data", "guided": True}


@pytest.mark.parametrize(
    ("family", "between", "negative"),
    [("cogvideox_2b", "ddim", ""), ("wan_2_1", "ddim", ""), ("wan_2_1", "renoise", "a large blue square")],
)
def test_a_tuned_teacher_is_exported_with_its_guidance(
    command: Callable, teachers: Callable, tmp_path: Path, family: str, between: str, negative: str
) -> None:
    teacher = FAMILIES[family].load(teachers(family), negative_prompt=negative)
    save_run(tmp_path / "run", teacher, family, changed(teacher), **{**TUNED, "between": between})
    keys = [f"checkpoint={tmp_path / 'run'}", *([f"teacher.negative_prompt={negative}"] if negative else [])]
    said = exported(command, *keys, f"out={tmp_path / 'out'}")
    assert "5 steps by diffusers alone: latents" in said and "the tuned teacher for 5 steps" in said
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"num_inference_steps=5, guidance_scale={teacher.guidance_scale}" in text
    assert (f"negative_prompt={negative!r}" in text) == bool(negative)
    assert "# tiny, tuned" in text and "Guidance is not within it" in text and "instead of" not in text
    # What is read back is sampled with guidance, and another scale makes another clip.
    code = text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "out"))
    space: dict[str, Any] = {}
    exec(code.replace("pipe(", 'pipe(output_type="pt", prompt='), space)
    prompt = code.split("pipe(")[1].split(",")[0].strip("'\"")

    def ours(scale: float) -> Tensor:
        guided = FAMILIES[family].load(teachers(family), negative_prompt=negative, guidance_scale=scale)
        made = make_latents(
            load_student(tmp_path / "out", guided).sampler(guided, 5), guided, [prompt], [0], show=False
        )
        return decode(guided, made, show=False)[0].float()

    theirs = (space["frames"] * 255).round()
    assert (theirs - ours(teacher.guidance_scale)).abs().max() <= 1 < (theirs - ours(1.0)).abs().max()


def test_a_tuned_teacher_in_a_checkpoint_is_one_too(command: Callable, cog: Teacher, tmp_path: Path) -> None:
    plain = {"cycle": 1, "config": stored(cog, "cogvideox_2b", **TUNED)}
    tensors = {f"ema/{n}": p for n, p in changed(cog).named_parameters()}
    checkpoint.save(tmp_path / "checkpoints", 1, tensors, plain, World())
    said = exported(command, f"checkpoint={tmp_path / 'checkpoints'}", f"out={tmp_path / 'out'}", "verify=false")
    assert "tuned teacher" in said and load_student(tmp_path / "out", cog).guided


# Weights


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_the_transformer_alone(
    command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "out"
    said = exported(command, f"checkpoint={cog_run}", f"out={out}", f"dtype={dtype}")
    # The comparison is in float32, of the values that were stored; then the clip is made once in half precision.
    assert "4 steps by diffusers alone: latents and frames are equal to the bit" in said
    assert f"in {dtype}: the clip is finite" in said
    full = weights(cog_run / "student")
    assert all(torch.equal(t, full[n].to(getattr(torch, dtype))) for n, t in weights(out).items())
    assert f"dtype=torch.{dtype}" in (out / "README.md").read_text()
    own = export.needed_bytes(cog, getattr(torch, dtype), link=True)
    assert own == sum(t.nbytes for t in weights(out).values()) == sum(t.nbytes for t in full.values()) / 2
    others = [p for part in ("vae", "text_encoder", "tokenizer") for p in (out / part).iterdir()]
    assert export.needed_bytes(cog, getattr(torch, dtype), link=False) == own + sum(p.stat().st_size for p in others)
    for shared in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (out / shared).read_bytes() == (cog.folder / shared).read_bytes()


def test_what_diffusers_keeps_in_float32_stays(command: Callable, teachers: Callable, tmp_path: Path) -> None:
    teacher = FAMILIES["wan_2_1"].load(teachers("wan_2_1"))
    save_run(tmp_path, teacher, "wan_2_1", changed(teacher))
    exported(command, f"checkpoint={tmp_path}", f"out={tmp_path / 'out'}", "dtype=bfloat16")
    found = weights(tmp_path / "out")
    kept = {n for n, t in found.items() if t.dtype == torch.float32}
    assert "condition_embedder.time_embedder.linear_1.weight" in kept and "scale_shift_table" in kept
    assert found["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16


def test_shards_and_links(command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = exported(command, f"checkpoint={cog_run}", f"out={out}", "max_shard_size=60KB", "link=true")
    assert "equal to the bit" in said
    shards = sorted((out / "transformer").glob("*.safetensors"))
    index = json.loads(next((out / "transformer").glob("*.index.json")).read_text())
    assert len(shards) > 2 and set(index["weight_map"].values()) == {p.name for p in shards}
    full = weights(cog_run / "student")
    assert full.keys() == index["weight_map"].keys()
    assert all(torch.equal(t, full[n]) for n, t in weights(out).items())
    assert (out / "vae" / "config.json").samefile(cog.folder / "vae" / "config.json")


def test_components_are_copied_from_where_they_lie(
    command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path
) -> None:
    """An autoencoder that the teacher takes from elsewhere; pickles are left behind."""
    shutil.copytree(cog.folder / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    shutil.copytree(cog.folder, tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher" / "vae")
    places = [f"teacher.folder={tmp_path / 'teacher'}", f"teacher.parts={{vae: {tmp_path / 'vae'}}}"]
    said = exported(command, f"checkpoint={cog_run}", f"out={tmp_path / 'out'}", *places)
    assert "equal to the bit" in said
    assert sorted(p.name for p in (tmp_path / "out" / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    before = json.loads((tmp_path / "teacher" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    assert {k: v for k, v in index.items() if k != "scheduler"} == {k: v for k, v in before.items() if k != "scheduler"}


def test_wan_2_2_keeps_the_keys_of_its_index(command: Callable, teachers: Callable, tmp_path: Path) -> None:
    teacher = FAMILIES["wan_2_2_ti2v"].load(teachers("wan_2_2_ti2v"))
    save_run(tmp_path, teacher, "wan_2_2_ti2v", changed(teacher), steps=[2])
    said = exported(command, f"checkpoint={tmp_path}", f"out={tmp_path / 'out'}")
    assert "2 steps by diffusers alone: latents and frames are equal to the bit" in said
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["expand_timesteps"] is True


# Checkpoints


@pytest.fixture
def checkpointed(cog: Teacher, tmp_path: Path) -> Path:
    """A run that was stopped: a checkpoint with averaged and last weights, and with moments that nobody wants."""
    folder, last, averaged = tmp_path / "run", changed(cog, 0.03), changed(cog, 0.01)
    tensors = {f"student/{n}": p for n, p in last.named_parameters()}
    tensors |= {f"ema/{n}": p for n, p in averaged.named_parameters()}
    tensors |= {"student.optim/transformer.proj_out.bias/step": torch.ones(())}
    checkpoint.save(
        folder / "checkpoints", 120, tensors, {"cycle": 120, "config": stored(cog, "cogvideox_2b")}, World()
    )
    return folder


@pytest.mark.parametrize(("kind", "by"), [("ema", 0.01), ("last", 0.03)])
@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/step-00000120"])
def test_a_checkpoint_is_a_student_too(
    command: Callable, cog: Teacher, checkpointed: Path, tmp_path: Path, place: str, kind: str, by: float
) -> None:
    keys = [f"checkpoint={checkpointed / place}", f"weights={kind}", "steps=1"]
    assert "equal to the bit" in exported(command, *keys, f"out={tmp_path / 'out'}")
    wanted = {n.removeprefix("transformer."): p for n, p in changed(cog, by).named_parameters()}
    assert all(torch.equal(t, wanted[n]) for n, t in weights(tmp_path / "out").items())
    assert json.loads((tmp_path / "out" / "student.json").read_text())["cycle"] == 120


def test_a_damaged_checkpoint_is_told(command: Callable, checkpointed: Path, tmp_path: Path) -> None:
    step = checkpointed / "checkpoints" / "step-00000120"
    data = bytearray((step / checkpoint.TENSORS).read_bytes())
    data[-1] ^= 1
    (step / checkpoint.TENSORS).write_bytes(data)
    refused(command, "is damaged", "size or hash differ", checkpoint=step, out=tmp_path / "out")


def with_factors(teacher: Teacher, rank: int) -> dict[str, Tensor]:
    """A LoRA student's trained parameters, by the names that a checkpoint has."""
    network = trainable_copy(teacher, World(), lora=rank)
    named = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(3)
    return {n: p + 0.1 * torch.randn(p.shape, generator=generator) for n, p in named.items()}


def test_a_checkpoint_of_a_lora_is_a_student_too(command: Callable, cog: Teacher, tmp_path: Path) -> None:
    """It holds the factors alone; the weights below them are the teacher's."""
    factors = with_factors(cog, 4)
    plain = {"cycle": 1, "config": stored(cog, "cogvideox_2b", lora=4)}
    checkpoint.save(tmp_path / "checkpoints", 1, {f"ema/{n}": t for n, t in factors.items()}, plain, World())
    out = tmp_path / "out"
    assert "equal to the bit" in exported(command, f"checkpoint={tmp_path / 'checkpoints'}", f"out={out}", "steps=1")
    before, after = weights(cog.folder), weights(out)
    layer = "transformer_blocks.0.attn1.to_q"
    a, b = (factors[f"transformer.{layer}.lora_{part}.default.weight"] for part in "AB")
    torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + b @ a)
    assert torch.equal(after["proj_out.weight"], before["proj_out.weight"])
    assert torch.equal(load_file(out / lora.FILE)[f"transformer.{layer}.lora_A.weight"], a)
    refused(command, "is a LoRA", "lora=null", checkpoint=tmp_path / "checkpoints", out=tmp_path / "other", lora=4)


# LoRA


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_what_a_low_rank_leaves_is_what_it_cut_off(shape: tuple[int, int]) -> None:
    change = random(*shape)
    values = torch.linalg.svdvals(change)
    for rank in (1, 3, min(shape), 9):
        a, b = lora.low_rank(change, rank)
        assert (a.shape, b.shape) == ((rank, shape[1]), (shape[0], rank))
        left = torch.linalg.vector_norm(change - b @ a)
        torch.testing.assert_close(left, values[rank:].square().sum().sqrt(), rtol=0, atol=1e-5)


class Blocks(nn.Module):
    """Two blocks of a linear layer, one layer outside of them, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 4)), nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))])
        self.outside = nn.Linear(6, 6)


def test_a_residual_is_over_all_layers_and_what_is_not_covered_is_listed() -> None:
    network = Blocks()
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    with torch.no_grad():
        network.blocks[0][0].weight += torch.eye(4, 6) * torch.tensor([4.0, 3.0, 2.0, 1.0])[:, None]
        network.blocks[1][0].weight += torch.eye(6, 4) * 2
        network.blocks[1][0].bias += 1
        network.outside.weight += torch.eye(6) * 5
    found = lora.extract(network, network.blocks, before.__getitem__, 2)
    assert lora.extract(network, network.blocks, before.__getitem__, 10**6).rank == 4  # the most that a layer has
    assert found.tensors.keys() == {f"blocks.{i}.0.lora_{part}.weight" for i in (0, 1) for part in "AB"}
    one, other = found.layers  # the worse one first
    assert (one.name, other.name) == ("blocks.1.0", "blocks.0.0")
    assert one.residual == pytest.approx((2 / 4) ** 0.5, abs=1e-5)
    assert other.residual == pytest.approx((5 / 30) ** 0.5, abs=1e-5)
    assert found.residual == pytest.approx(((8 + 5) / (16 + 30)) ** 0.5, abs=1e-5)
    assert list(found.uncovered) == ["outside.weight", "blocks.1.0.bias"]
    assert found.uncovered["outside.weight"] == pytest.approx(5 * 6**0.5, rel=1e-5)
    with pytest.raises(ValueError, match="no LoRA to extract"):
        lora.extract(network, network.blocks, dict(network.named_parameters()).__getitem__, 2)


def test_the_lora_is_loaded_by_the_pipeline(
    command: Callable, family: str, teacher: Teacher, run: Path, tmp_path: Path
) -> None:
    """With a rank that leaves nothing, the teacher's linear layers and the LoRA are the student's."""
    from diffusers import DiffusionPipeline

    out = tmp_path / "out"
    said = exported(command, f"checkpoint={run}", f"out={out}", "lora=128", "full=false")
    most = lora.largest_rank(teacher.denoiser.network.transformer, teacher.denoiser.network.blocks)
    assert most < 128 and f"rank {most} leaves" in said and "not covered" in said  # more than it has is no more
    assert sorted(p.name for p in out.iterdir()) == ["README.md", lora.FILE, "scheduler"]
    pipe = DiffusionPipeline.from_pretrained(teacher.folder)
    pipe.load_lora_weights(out)
    wanted, layers = weights(run / "student"), dict(pipe.transformer.named_modules())
    network = teacher.denoiser.network
    names = lora.linear_layers(network.transformer, network.blocks)
    assert names
    for name in names:
        layer = layers[name]
        (scale,) = layer.scaling.values()
        product = layer.lora_B["default_0"].weight @ layer.lora_A["default_0"].weight
        assert scale == 1
        torch.testing.assert_close(layer.base_layer.weight + product, wanted[f"{name}.weight"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 0.0), ("bfloat16", 1e-2)])
def test_a_small_rank_is_written(
    command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path, dtype: str, atol: float
) -> None:
    said = exported(
        command, f"checkpoint={cog_run}", f"out={tmp_path / 'out'}", "lora=2", "full=false", f"dtype={dtype}"
    )
    assert "rank 2 leaves 0." in said
    before, after = weights(cog.folder), weights(cog_run / "student")
    with safe_open(tmp_path / "out" / lora.FILE, "pt") as opened:
        for name in ("transformer_blocks.1.ff.net.2", "transformer_blocks.0.attn1.to_v"):
            wanted = lora.low_rank(after[f"{name}.weight"] - before[f"{name}.weight"], 2)
            for part, factor in zip("AB", wanted, strict=True):
                found = opened.get_tensor(f"transformer.{name}.lora_{part}.weight")
                assert found.dtype == getattr(torch, dtype)
                torch.testing.assert_close(found.float(), factor, rtol=0, atol=atol)


def test_a_lora_of_all_that_changed_makes_the_students_clips(command: Callable, cog: Teacher, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline, LCMScheduler

    run = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog, 0.05, "attn1.to_q.weight"))
    exported(command, f"checkpoint={run}", f"out={tmp_path / 'out'}", "lora=128")
    full = DiffusionPipeline.from_pretrained(tmp_path / "out")  # beside it
    base = DiffusionPipeline.from_pretrained(cog.folder)
    base.scheduler = LCMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    calls = export.call_of(cog, 2)
    ours = export.by_pipeline(full, calls, PROMPT, 3)
    without = export.by_pipeline(base, calls, PROMPT, 3)
    base.load_lora_weights(tmp_path / "out")
    theirs = export.by_pipeline(base, calls, PROMPT, 3)
    assert export.Difference.between(ours, theirs).share < 1e-4 < export.Difference.between(ours, without).share


def test_a_student_that_is_a_lora_keeps_it(command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path) -> None:
    shutil.copytree(cog_run / "student", tmp_path / "student")
    own = {name.replace(".default", ""): value for name, value in with_factors(cog, 2).items()}
    save_file(own, tmp_path / "student" / lora.FILE)
    for keys in ([], ["full=false"]):
        out = tmp_path / f"out{len(keys)}"
        exported(command, f"checkpoint={tmp_path / 'student'}", f"out={out}", "steps=1", *keys)
        found = load_file(out / lora.FILE)
        assert found.keys() == own.keys() and all(torch.equal(found[n], own[n]) for n in own)
        assert (out / "transformer").is_dir() != bool(keys)
        assert "load_lora_weights" in (out / "README.md").read_text() or not keys
    refused(command, "is a LoRA", "lora=null", checkpoint=tmp_path / "student", out=tmp_path / "out", lora=4)


# The card


def test_the_card_says_what_it_is(command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path) -> None:
    from dollar.export.model_card import read_front_matter

    run = tmp_path / "run"
    shutil.copytree(cog_run / "student", run / "student")
    (run / "metrics.jsonl").write_text(
        '{"step": 2, "validation/reward_4": 0.5}\n{"step": 3, "validation/reward_4": 0.25}\n'
    )
    out = tmp_path / "out"
    exported(command, f"checkpoint={run}", f"out={out}", "verify=false")
    head, text = read_front_matter(out / "README.md"), (out / "README.md").read_text()
    named = {"license": "other", "base_model": "tiny"}
    assert head == {**named, "pipeline_tag": "text-to-video", "library_name": "diffusers"}
    assert (
        "folder names none" in text and "reward_4: 0.25" in text and "0.5" not in text.split("## Last")[1].split("#")[0]
    )
    assert "[999, 749, 499, 249]" in text and "cd 0.5" in text and "none (ShapesVerifier was only measured)" in text
    # Its lines of python make our clip.
    code = text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(out))
    space: dict[str, Any] = {}
    exec(code.replace("pipe(", 'pipe(output_type="pt", prompt='), space)
    prompt = code.split("pipe(")[1].split(",")[0].strip("'\"")
    loaded = load_student(run / "student", cog)
    made = make_latents(loaded.sampler(cog, 4), cog, [prompt], [0], show=False)
    assert torch.equal((space["frames"] * 255).round().byte(), decode(cog, made, show=False)[0])
    # The command composes.
    words = shlex.split(text.split("torchrun launch/train.py ")[1].split("\n")[0])
    assert compose("train", *words).student.steps == [4, 2, 1]


LOSSES: dict[str, tuple[list[str], list[str]]] = {
    "ddpo": (
        ["loss=ddpo", "beta_ddpo=0.25", "reward=pickscore", "reward.path=some/clip"],
        [
            "losses: vsd 1.0 (guidance_scale 1.0",
            "ddpo 0.25 (truncate 2, kernel renoise)",
            "reward: PickScore (some/clip), by way of ddpo",
        ],
    ),
    "draft": (
        ["loss=draft", "beta_pull=0.5", "reward=colourfulness"],
        [
            "pull 0.5 (steps 4, until data, distance mse, guidance_scale 1.5)",
            "draft 0.5 (last 1, frames 4, decoder full)",
            "Colourfulness, by way of draft",
        ],
    ),
    "both": (
        ["loss=refl", "beta_ft=0.1", "reward=mixture", "reward.weights.shapes=1", "reward.weights.flicker=2"],
        ["refl 0.5", "reward: Mixture (flicker 2, shapes 1), by way of a latent reward model and refl"],
    ),
    "frozen": (
        ["lrm.mode=frozen", "lrm.path=LRM", "reward=none"],
        ["ft 0.3 (update joint", "reward: Redness, by way of the frozen latent reward model LRM"],
    ),
    "pretrained": (
        ["lrm.mode=pretrained", "lrm.path=LRM"],
        ["reward: ShapesVerifier, by way of the pretrained latent reward model LRM"],
    ),
    "pull": (["beta_ft=0", "beta_pull=1", "reward=none"], ["pull 1 (steps 4", "reward: none\n"]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_card_says_every_term_and_the_reward_that_was_followed(tmp_path: Path, name: str) -> None:
    from omegaconf import OmegaConf

    from dollar.cli.build.exporting import choices
    from dollar.export.recipe import command, training

    (tmp_path / "lrm.json").write_text('{"reward": "Redness"}')
    given, words = ([part.replace("LRM", str(tmp_path)) for part in parts] for parts in LOSSES[name])
    config: Any = OmegaConf.to_container(compose("train", *given), resolve=True)
    text = "\n".join(training(config, {"cycle": 1}, None, choices())) + "\n"
    assert all(word in text for word in words), text
    # A run that didn't keep its command says which loss it had.
    again = compose("train", *shlex.split(command(config, {}, choices()).split("launch/train.py ")[1]))
    assert OmegaConf.to_container(again.terms, resolve=True) == config["terms"]


def test_the_license_is_the_teachers_or_the_one_that_is_given(
    command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path
) -> None:
    from dollar.export.model_card import read_front_matter

    shutil.copytree(cog.folder, tmp_path / "teacher")
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# A teacher\n")
    keys = [f"checkpoint={cog_run}", f"teacher.folder={tmp_path / 'teacher'}", "verify=false"]
    exported(command, *keys, f"out={tmp_path / 'one'}")
    assert read_front_matter(tmp_path / "one" / "README.md")["license"] == "apache-2.0"
    exported(command, *keys, f"out={tmp_path / 'two'}", "license=mit")
    assert read_front_matter(tmp_path / "two" / "README.md")["license"] == "mit"


# What is refused


def test_mistakes_are_sentences(
    command: Callable, cog: Teacher, cog_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the mistake must be told before the student's weights are read")

    monkeypatch.setattr("dollar.export.pipeline.read_network", forbidden)
    out, student = tmp_path / "out", cog_run / "student"
    (tmp_path / "empty").mkdir()
    refused(command, "checkpoint is not given", out=out)
    refused(command, "out is not given", checkpoint=student)
    refused(command, "no such folder", checkpoint=tmp_path / "none", out=out)
    refused(command, "neither a student nor a checkpoint", checkpoint=tmp_path / "empty", out=out)
    refused(command, "steps is 3", "4 or 2 or 1", checkpoint=student, out=out, steps=3)
    refused(command, "averaged ones alone", checkpoint=student, out=out, weights="last")
    refused(command, "lie in one another", checkpoint=student, out=student / "out")
    refused(command, "lie in one another", checkpoint=student, out=cog_run, overwrite="true")
    refused(command, "lie in one another", checkpoint=student, out=cog.folder / "out")
    refused(command, "float8", "bfloat16", checkpoint=student, out=out, dtype="float8")
    refused(command, "lora is null", checkpoint=student, out=out, full="false")
    refused(command, "lora is 0", checkpoint=student, out=out, lora=0)
    refused(command, "max_shard_size is big", checkpoint=student, out=out, max_shard_size="big")
    refused(command, "no teacher at", "teacher.folder=", checkpoint=student, out=out, teacher__folder=tmp_path / "gone")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("")
    refused(command, "is not empty", "overwrite=true", checkpoint=student, out=full)
    refused(command, "holds something else", checkpoint=student, out=full, overwrite="true")
    assert (full / "mine").is_file() and not out.exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    refused(command, "bytes and 1 are free", "link=true", checkpoint=student, out=out)


def test_another_teachers_shapes_are_told(command: Callable, cog_run: Path, teachers: Callable, tmp_path: Path) -> None:
    shutil.copytree(teachers("cogvideox_5b"), tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "transformer" / "config.json").read_text())
    (tmp_path / "teacher" / "transformer" / "config.json").write_text(json.dumps({**config, "time_embed_dim": 24}))
    refused(command, "was trained from", checkpoint=cog_run, out=tmp_path / "o", teacher__folder=tmp_path / "teacher")


def test_a_failed_comparison_leaves_nothing_and_overwriting_replaces(
    command: Callable, cog_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"checkpoint={cog_run}", f"out={tmp_path / 'out'}", "parallel.device=cpu", "steps=1"]
    original = export.write_pipeline

    def other(folder: Path, teacher: Teacher, network: Any, *settings: Any) -> None:
        with torch.no_grad():
            network.transformer.proj_out.bias += 1e-6
        original(folder, teacher, network, *settings)

    with monkeypatch.context() as patched:
        patched.setattr(export, "write_pipeline", other)
        said = command("export", *keys)
    assert said.code == 2 and "another clip in 1 steps" in said.err and "should be equal" in said.err
    assert list(tmp_path.iterdir()) == []
    exported(command, *keys)
    (tmp_path / "out" / "old").write_text("")
    exported(command, *keys, "overwrite=true")
    assert not (tmp_path / "out" / "old").exists() and (tmp_path / "out" / "model_index.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

"""Exported LoRAs: what they leave is said first, clips are compared, and original names hold the same change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_export import changed, exported, refused, save_run, weights, with_factors
from torch import Tensor

from dollar.models import lora
from dollar.models.hunyuanvideo import HunyuanVideo
from dollar.models.original_names import by_original_names
from dollar.models.teacher import Teacher


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Teacher]:
    made: dict[str, Teacher] = {}

    def teacher(family: str) -> Teacher:
        if family not in made:
            made[family] = FAMILIES[family].load(build(family, tmp_path_factory.mktemp(family) / "teacher"))
        return made[family]

    return teacher


@pytest.fixture(scope="module")
def cog(teachers: Callable) -> Teacher:
    return teachers("cogvideox_2b")


# What is left out


def squares(before: dict[str, Tensor], after: dict[str, Tensor], linear: list[str]) -> tuple[Tensor, float]:
    """Squared singular values of the linear layers' change [layers, n], and the square of all else that changed."""
    change = {n: (after[n] - before[n]).double() for n in after}
    rest = sum(float(c.square().sum()) for n, c in change.items() if n.removesuffix(".weight") not in linear)
    values = [torch.linalg.svdvals(change[f"{n}.weight"]).square() for n in linear]
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True), rest


def test_what_is_left_out_is_said_first_and_last(
    command: Callable, cog: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that changed: 63 % left out is no success, whatever was written."""
    run, out = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog, only="attn1")), tmp_path / "out"
    network = cog.denoiser.network
    names = [n for n in lora.linear_layers(network.transformer, network.blocks) if "attn1" in n]
    values, rest = squares(weights(cog.folder), weights(run / "student"), names)
    whole = float(values.sum()) + rest
    left = ((float(values[:, 4:].sum()) + rest) / whole) ** 0.5
    assert 0.3 < left < 0.95 and rest > 0  # norms and biases of the attention changed, too
    ranks = {}
    for goal in (0.9, 0.99):
        enough = [r for r in range(1, 33) if float(values[:, r:].sum()) + rest <= (1 - goal) ** 2 * whole * (1 + 1e-9)]
        ranks[goal] = enough[0] if enough else None
    said = exported(command, f"checkpoint={run}", f"out={out}", "lora=4", "full=false", "steps=2")
    lines = [line for line in said.splitlines() if line.strip()]
    share = f"keeps {1 - left:.1%} of what training changed and leaves {left:.1%} out"
    assert lines[0].startswith("note: a LoRA of rank 4, which " + share)
    compared = [line for line in lines if "by the teacher with the LoRA: the clip differs from the student's" in line]
    assert len(compared) == 2  # in two steps and in one
    assert lines[-1].startswith("a LoRA of the student for 2 or 1 steps, of rank 4, which " + share)
    for goal, rank in ranks.items():
        wanted = f"would keep {goal:.0%} of what changed in the layers" if rank is None else f"rank {rank} would keep"
        assert wanted in lines[-1] and wanted in lines[0]
    apart = [float(re.search(r"by ([\d.e-]+) of the latents' size", line)[1]) for line in compared]
    assert all(share > 0.01 for share in apart)
    assert f"leaves {left:.1%} out" in (out / "README.md").read_text()


def test_ranks_that_keep_a_share_follow_the_singular_values() -> None:
    found = lora.Extracted(1, {}, [lora.Layer("a", 5.0, 3.0)], {"b": 0.0}, torch.tensor([16.0, 9.0]).double())
    assert found.left_out == pytest.approx(0.6)
    assert found.rank_for(0.6) == 1 and found.rank_for(0.59) == 2 and found.rank_for(0.0) == 2
    found.uncovered["b"] = 5.0
    assert found.left_out == pytest.approx(((9 + 25) / 50) ** 0.5)
    assert found.rank_for(0.5) is None and found.rank_for(0.1, covered=True) == 2
    assert found.rank_for(0.75) == 2


def test_a_lora_of_all_that_changed_makes_the_students_clip(command: Callable, cog: Teacher, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog, 0.05, "attn1.to_q.weight"))
    keys = [f"checkpoint={run}", "lora=32", "full=false", "steps=1"]
    said = exported(command, *keys, f"out={tmp_path / 'out'}")
    assert "keeps 100.0% of what training changed and leaves 0.0% out" in said.splitlines()[-1]
    (apart,) = re.findall(r"differs from the student's by ([\d.e-]+) of", said)
    assert float(apart) < 1e-4
    unseen = exported(command, *keys, f"out={tmp_path / 'other'}", "verify=false")
    assert "its clips not compared" in unseen.splitlines()[-1] and "differs" not in unseen


def test_a_file_that_diffusers_reads_otherwise_is_refused(
    command: Callable, cog: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dollar.export import exporter

    run = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog))
    own = exporter.write_lora

    def halved(folder: Path, *rest: Any) -> None:
        own(folder, *rest)
        tensors = load_file(folder / lora.FILE)
        save_file({n: t / 2 if ".lora_B." in n else t for n, t in tensors.items()}, folder / lora.FILE)

    monkeypatch.setattr(exporter, "write_lora", halved)
    for full in ("true", "false"):
        keys = [f"checkpoint={run}", f"out={tmp_path / 'out'}", "lora=16", f"full={full}", "steps=1"]
        said = command("export", "parallel.device=cpu", *keys)
        assert said.code == 2 and "makes another clip in 1 steps by diffusers than by us" in said.err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_what_a_student_was_trained_as_is_compared_too_and_has_its_dtype(
    command: Callable, cog: Teacher, tmp_path: Path
) -> None:
    from dollar.export.pipeline import merge_lora

    own = {n.replace(".default", "").removeprefix("transformer."): t for n, t in with_factors(cog, 2).items()}
    run = save_run(tmp_path / "run", cog, "cogvideox_2b", merge_lora(cog, cog.denoiser.network, own))
    save_file({f"transformer.{n}": t for n, t in own.items()}, run / "student" / lora.FILE)
    for dtype, most in (("float32", 1e-4), ("bfloat16", 0.1)):
        out = tmp_path / dtype
        keys = [f"checkpoint={run}", f"out={out}", f"dtype={dtype}", "full=false", "steps=1"]
        said = exported(command, *keys)
        (apart,) = re.findall(r"differs from the student's by ([\d.e-]+) of", said)
        assert float(apart) < most and "student for 1 steps, as its LoRA alone, is in" in said.splitlines()[-1]
        assert {t.dtype for t in load_file(out / lora.FILE).values()} == {getattr(torch, dtype)}


def test_a_lora_on_top_of_another_is_not_compared_and_says_so(command: Callable, cog: Teacher, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog))
    own = {n.replace(".default", ""): t for n, t in with_factors(cog, 2).items()}
    save_file(own, run / "student" / lora.FILE)
    save_file(own, tmp_path / "teachers.safetensors")
    card = json.loads((run / "student" / "student.json").read_text())
    card["teacher"]["lora"] = str(tmp_path / "teachers.safetensors")
    (run / "student" / "student.json").write_text(json.dumps(card))
    said = exported(command, f"checkpoint={run}", f"out={tmp_path / 'out'}", "steps=1")
    assert "the LoRA is not compared" in said and "by the teacher with the LoRA" not in said
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_an_extracted_lora_is_not_taken_for_a_trained_one(command: Callable, cog: Teacher, tmp_path: Path) -> None:
    """An export with one beside it is exported again as what it is: a student of full weights."""
    run = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog))
    keys = ["steps=1", "verify=false"]
    exported(command, f"checkpoint={run}", f"out={tmp_path / 'one'}", "lora=2", *keys)
    place = f"teacher.folder={cog.folder}"
    refused(command, "lora is null", checkpoint=tmp_path / "one", out=tmp_path / "two", full="false")
    exported(command, f"checkpoint={tmp_path / 'one'}", f"out={tmp_path / 'two'}", place, *keys)
    assert not (tmp_path / "two" / lora.FILE).exists()
    before, after = weights(run / "student"), weights(tmp_path / "two")
    assert all(torch.equal(before[name], after[name]) for name in before)


# Original names


def random_lora(layers: dict[str, tuple[int, int]], rank: int = 2) -> dict[str, Tensor]:
    """Factors for layers of (out, in)."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, (out, into) in layers.items():
        found[f"{name}.lora_A.weight"] = torch.randn(rank, into, generator=generator)
        found[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return found


NAMED = {
    "wan_2_1": ["blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.0.ffn.0", "blocks.1.ffn.2"],
    "ltx": ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_out.0", "transformer_blocks.0.ff.net.2"],
}


@pytest.mark.parametrize("family", NAMED)
def test_diffusers_reads_the_original_names_back_to_the_bit(
    command: Callable, teachers: Callable, tmp_path: Path, family: str
) -> None:
    from dollar.models.pipeline import diffusers_class

    teacher = teachers(family)
    run = save_run(tmp_path / "run", teacher, family, changed(teacher))
    keys = [f"checkpoint={run}", "lora=3", "full=false", "steps=1"]
    exported(command, *keys, f"out={tmp_path / 'plain'}", "verify=false")
    said = exported(command, *keys, f"out={tmp_path / 'original'}", "lora_names=original")
    assert "by the teacher with the LoRA" in said  # read by diffusers, and compared
    plain, original = (load_file(tmp_path / place / lora.FILE) for place in ("plain", "original"))
    assert {f"diffusion_model.{n}.lora_{part}.weight" for n in NAMED[family] for part in "AB"} <= original.keys()
    assert len(original) == len(plain) == 2 * 20 and all(n.startswith("diffusion_model.") for n in original)
    read = diffusers_class(teacher.family.pipeline_class).lora_state_dict(tmp_path / "original")
    assert read.keys() == plain.keys() and all(torch.equal(read[n], plain[n]) for n in plain)
    with safe_open(tmp_path / "original" / lora.FILE, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_fused_layers_hold_the_same_change(teachers: Callable) -> None:
    """HunyuanVideo's authors have queries, keys, values and the MLP in one layer; diffusers takes it apart again."""
    from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers

    wide, single, double = 3072, "single_transformer_blocks.{}", "transformer_blocks.{}"  # the converter's own width
    layers = {f"{single.format(b)}.{n}": (wide, 5) for b in (0, 11) for n in ("attn.to_q", "attn.to_k", "attn.to_v")}
    layers |= {f"{single.format(b)}.proj_mlp": (4 * wide, 5) for b in (0, 11)}
    layers |= {f"{single.format(0)}.{n}": (8, 5) for n in ("proj_out", "norm.linear")}
    joint = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
    layers |= {f"{double.format(3)}.attn.{n}": (wide, 5) for n in joint}
    others = ("norm1.linear", "norm1_context.linear", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj")
    layers |= {f"{double.format(3)}.{n}": (8, 5) for n in (*others, "ff_context.net.2")}
    ours = random_lora(layers)
    assert HunyuanVideo.original_layers is not None
    original = by_original_names(ours, HunyuanVideo.original_layers, {n: out for n, (out, _) in layers.items()})
    assert original["diffusion_model.single_blocks.11.linear1.lora_A.weight"].shape == (8, 5)
    assert original["diffusion_model.single_blocks.11.linear1.lora_B.weight"].shape == (7 * wide, 8)
    assert original["diffusion_model.double_blocks.3.txt_attn_qkv.lora_B.weight"].shape == (3 * wide, 6)
    # Two blocks of one fused layer, one of two plain ones, and two fused and eight plain ones.
    assert len(original) == 2 * (2 + 2 + 2 + 8)
    read = _convert_hunyuan_video_lora_to_diffusers(dict(original))
    assert {n.removeprefix("transformer.") for n in read} == ours.keys()
    for name in layers:
        a, b = (read[f"transformer.{name}.lora_{part}.weight"] for part in "AB")
        rank = slice((b != 0).any(0).nonzero().min(), (b != 0).any(0).nonzero().max() + 1)
        assert torch.equal(b[:, rank], ours[f"{name}.lora_B.weight"]) and not b.count_nonzero() > b[:, rank].numel()
        assert torch.equal(a[rank], ours[f"{name}.lora_A.weight"])


def test_a_part_that_did_not_change_has_zeros_and_unknown_layers_are_told() -> None:
    layers = {"blocks.{}.qkv": ["b.{}.q", "b.{}.k", "b.{}.v"], "blocks.{}.o": ["b.{}.o"]}
    ours = random_lora({"b.1.q": (2, 3), "b.1.v": (4, 3)}, rank=1)
    found = by_original_names(ours, layers, {"b.1.q": 2, "b.1.k": 5, "b.1.v": 4})
    a, b = (found[f"diffusion_model.blocks.1.qkv.lora_{part}.weight"] for part in "AB")
    change = torch.cat([ours["b.1.q.lora_B.weight"] @ ours["b.1.q.lora_A.weight"], torch.zeros(5, 3)])
    change = torch.cat([change, ours["b.1.v.lora_B.weight"] @ ours["b.1.v.lora_A.weight"]])
    assert torch.equal(b @ a, change) and len(found) == 2
    with pytest.raises(ValueError, match=r"changes b\.1\.extra, for which the model's authors have no layer"):
        by_original_names(random_lora({"b.1.extra": (2, 2)}), layers, {})


def as_comfyui_reads(original: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model by its authors' names with a LoRA: W + alpha / rank B A, where no alpha is 1 in place of alpha / rank."""
    found, used = {}, set()
    for name, weight in before.items():
        layer = f"diffusion_model.{name.removesuffix('.weight')}"
        names = [f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"]
        if not set(names) <= original.keys():
            found[name] = weight
            continue
        a, b = (original[n] for n in names)
        alpha = original.get(f"{layer}.alpha")
        found[name] = weight + (1.0 if alpha is None else float(alpha) / len(a)) * b @ a
        used |= set(names)
    assert used == original.keys()
    return found


def test_comfyui_gets_the_students_layers(command: Callable, teachers: Callable, tmp_path: Path) -> None:
    """With a rank that leaves nothing of them, fused ones too."""
    teacher = teachers("hunyuanvideo")
    run = save_run(tmp_path / "run", teacher, "hunyuanvideo", changed(teacher))
    keys = [f"checkpoint={run}", f"out={tmp_path / 'out'}", "lora=40", "full=false", "lora_names=original"]
    refused(
        command, "diffusers can't read the LoRA", "verify=false", **dict(k.split("=", 1) for k in keys)
    )  # its width
    exported(command, *keys, "verify=false")
    fused = {
        theirs: [part.format(0) for part in parts]
        for theirs, parts in ((n.format(0), p) for n, p in HunyuanVideo.original_layers.items())
    }
    models = []
    for folder in (teacher.folder, run / "student"):
        held = weights(folder)
        models.append({f"{n}.weight": torch.cat([held[f"{p}.weight"] for p in parts]) for n, parts in fused.items()})
    before, after = models
    made = as_comfyui_reads(load_file(tmp_path / "out" / lora.FILE), before)
    assert made.keys() == after.keys() and len(made) == 13
    for name in made:
        torch.testing.assert_close(made[name], after[name], rtol=0, atol=1e-5)
        assert not torch.allclose(made[name], before[name], atol=1e-3)


def test_names_that_cant_be_are_told_before_the_teacher_is_read(
    command: Callable, teachers: Callable, cog: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be read for this")

    monkeypatch.setattr("dollar.models.pipeline.Pipeline.read", forbidden)
    run, out = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog)), tmp_path / "out"
    refused(command, "CogVideoX", "diffusers' names everywhere", checkpoint=run, out=out, lora=4, lora_names="original")
    wan = teachers("wan_2_1")
    other = save_run(tmp_path / "wan", wan, "wan_2_1", changed(wan))
    refused(command, "no LoRA is written", "lora=64", checkpoint=other, out=out, lora_names="original")
    refused(command, "lora_names is 'comfy'", checkpoint=other, out=out, lora_names="comfy")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(command, "an export works in one process", checkpoint=other, out=out)
    assert not out.exists()


# Places


@pytest.mark.parametrize(
    "keys", [["lora=2"], ["lora=2", "full=false"], ["link=true"], ["own"], ["own", "full=false"]], ids=" ".join
)
def test_no_text_of_an_export_names_a_place_of_this_machine(
    command: Callable, cog: Teacher, tmp_path: Path, keys: list[str]
) -> None:
    here = tmp_path / "my files (1)" / "été"
    shutil.copytree(cog.folder, here / "teacher")
    for name, key in (("vae", "_name_or_path"), ("text_encoder", "_name_or_path"), ("tokenizer", "name_or_path")):
        config = here / "teacher" / name / ("tokenizer_config.json" if name == "tokenizer" else "config.json")
        told = json.loads(config.read_text())
        more = {"special_tokens_map_file": f"{here}/special_tokens_map.json"} if name == "tokenizer" else {}
        config.write_text(json.dumps({**told, key: str(here / "teacher" / name), **more}))
    (here / "teacher" / "README.md").write_text(f"---\nlicense: other\nlicense_link: {here}/LICENSE\n---\n")
    moved = FAMILIES["cogvideox_2b"].load(here / "teacher")
    run = save_run(here / "run", moved, "cogvideox_2b", changed(moved))
    card = json.loads((run / "student" / "student.json").read_text())
    config = card["config"] | {
        "init": str(here / "run 0" / "student"),
        "lrm": {"path": f"{here}/lrm", "mode": "frozen"},
    }
    config |= {"reward": {"_target_": "my.Reward", "path": "~/rewards/clip"}, "runs": str(here)}
    config |= {"data": {"path": [f"{here}/a b", "THUDM/CogVideoX-2b"], "held_out": None}, "note": f"see {tmp_path}/x."}
    words = ["run=a", f"data.path=['{here}/a b',{tmp_path}/c]", f"teacher.folder={here}/teacher", "beta_cd=0.5"]
    card |= {"config": config, "command": words, "places": {"teacher.folder": str(here / "teacher")}}
    (run / "student" / "student.json").write_text(json.dumps(card))
    if "own" in keys:
        own = {n.replace(".default", ""): t for n, t in with_factors(moved, 2).items()}
        save_file(own, run / "student" / lora.FILE)
    before = {p: p.read_bytes() for p in (here / "teacher").rglob("*.json")}
    given = [f"checkpoint='{run}'", f"out='{here / 'out'}'", "steps=1", "verify=false", "prompt=a dog"]
    exported(command, *given, *(k for k in keys if k != "own"))
    assert {p: p.read_bytes() for p in (here / "teacher").rglob("*.json")} == before
    found = 0
    for path in (p for p in (here / "out").rglob("*") if p.is_file()):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                text = json.dumps(opened.metadata())
        else:
            text = path.read_text(encoding="utf-8")
        found += 1
        for place in (str(tmp_path), json.dumps(str(here))[1:-1], "my files", str(Path.home()) + "/", "~/"):
            assert place not in text, (path, place, text[max(0, text.find(place) - 80) :][:200])
    text = (here / "out" / "README.md").read_text(encoding="utf-8")
    assert found >= 3 and "license_link: LICENSE" in text and "path: lrm" in text
    assert "teacher.folder=teacher" in text and "beta_cd=0.5" in text and "THUDM/CogVideoX-2b" in text
    if "full=false" not in keys:
        assert json.loads((here / "out" / "student.json").read_text())["teacher"]["folder"] == "teacher"


def test_places_are_named_and_all_else_stays() -> None:
    from dollar.export.places import by_name

    same = ["THUDM/CogVideoX-2b", "cats and/or dogs", "1/2", "https://a.b/c", "${embedded:shapes}", "</s>", "a / b"]
    same += ["my_module.reward", "w/o", "/", "hf://a/b", "3:4", ""]
    assert by_name(same) == same
    given = ["/home/me/a b", "~/clips/", "../x/é", "C:\\Users\\me\\x", "file:///a/b", "it is at /a/b/c, or ~/d."]
    assert by_name(given) == ["a b", "clips", "é", "x", "b", "it is at c, or d."]
    assert by_name({"a": ({"b": Path("/x/y")}, 3, None)}) == {"a": [{"b": "y"}, 3, None]}
    assert by_name("tests/families.py") == "families.py"  # which is here


# Folders


def test_what_killed_exports_left_goes_and_an_earlier_export_stays(tmp_path: Path) -> None:
    import os

    from dollar.export.folder import whole_folder

    out, dead = tmp_path / "a[1].b", 2**22 + 12345
    for kind, number in (("tmp", dead), ("old", dead), ("tmp", os.getppid())):
        (tmp_path / f".{out.name}.{number}.{kind}").mkdir()
        (tmp_path / f".{out.name}.{number}.{kind}" / "file").write_text(kind)
    with pytest.raises(RuntimeError), whole_folder(out) as aside:
        assert (out / "file").read_text() == "old"  # moved away by one that was killed then
        (aside / "file").write_text("new")
        raise RuntimeError
    assert (out / "file").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, f".{out.name}.{os.getppid()}.tmp"])
    (tmp_path / "link").symlink_to(out)
    with whole_folder(tmp_path / "link") as aside:
        (aside / "file").write_text("new")
    assert (tmp_path / "link").is_symlink() and (out / "file").read_text() == "new"


def test_figures_of_other_weights_are_left_out(cog: Teacher, tmp_path: Path) -> None:
    from dollar.export.model_card import figures
    from dollar.export.student import weights_of

    run = save_run(tmp_path / "run", cog, "cogvideox_2b", changed(cog))
    mine = weights_of(run / "student")
    metrics = {"teacher": {"alignment": 0.75}, "student": {"4": {"alignment": 0.625}}, "weights": mine}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "0.625" in "".join(figures(run, mine, [4]))
    save_run(run, cog, "cogvideox_2b", changed(cog, 0.03))
    assert weights_of(run / "student") != mine
    for other in (weights_of(run / "student"), None):
        text = "".join(figures(run, other, [4]))
        assert "0.625" not in text and "of other weights, and left out" in text
    (run / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k != "weights"}))
    assert "0.625" in "".join(figures(run, mine, [4]))  # of an evaluation from before they were noted

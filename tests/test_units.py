"""Units of transformers: what can be taken out, what is left, and that nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build

from dollar.export.pipeline import settle
from dollar.export.pruned import dense
from dollar.models.cogvideox import CogVideoX
from dollar.models.hunyuanvideo import HunyuanVideo
from dollar.models.pipeline import diffusers_class
from dollar.models.pruned import Pruning, read_pruning, unit_of
from dollar.models.units import Unit, counts_of, parse, take_out, units_of, without

COG, HUNYUAN = CogVideoX.block_lists, HunyuanVideo.block_lists
EIGHT = {"transformer_blocks": 8}
BOTH = {"transformer_blocks": 2, "single_transformer_blocks": 3}


def names(units: list[Unit]) -> list[str]:
    return [str(unit) for unit in units]


# Names


def test_units_stand_in_the_network_s_order() -> None:
    found = parse(["transformer_blocks.5", "transformer_blocks.2.feed_forward", "transformer_blocks.1"], COG, EIGHT)
    assert names(found) == ["transformer_blocks.1", "transformer_blocks.2.feed_forward", "transformer_blocks.5"]
    assert names(units_of(HUNYUAN, BOTH)) == [
        "transformer_blocks.0",
        "transformer_blocks.1",
        *(f"single_transformer_blocks.{i}" for i in range(3)),
    ]
    halves = names(units_of(HUNYUAN, BOTH, halves=True))
    assert halves[:2] == ["transformer_blocks.0.attention", "transformer_blocks.0.feed_forward"]
    assert halves[-1] == "single_transformer_blocks.2"  # which has none apart


def test_both_halves_are_the_block() -> None:
    both = ["transformer_blocks.3.feed_forward", "transformer_blocks.3.attention"]
    assert names(parse(both, COG, EIGHT)) == ["transformer_blocks.3"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "remove is empty"),
        (["transformer_blocks.8"], "has 8 blocks, from 0 to 7"),
        (["transformer_blocks.1", "transformer_blocks.1"], "transformer_blocks.1 twice"),
        (["transformer_blocks.1", "transformer_blocks.1.attention"], "its block is there, too"),
        (["transformer_block.1"], "its blocks are in transformer_blocks"),
        (["blocks.1"], "its blocks are in transformer_blocks"),
        (["transformer_blocks.1.atention"], "the nearest is attention"),
        (["transformer_blocks"], "a unit is a block, as transformer_blocks.1"),
        (["transformer_blocks.-1"], "a unit is a block"),
        (["transformer_blocks.²"], "a unit is a block"),
        ([f"transformer_blocks.{i}" for i in range(8)], "leaves nothing of transformer_blocks"),
        (["transformer_blocks.1.attention"] * 2, "twice"),
    ],
)
def test_what_is_no_unit_is_said(given: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(given, COG, EIGHT)


def test_a_block_that_computes_both_at_once_has_no_halves() -> None:
    with pytest.raises(ValueError, match="can only go as a whole; give single_transformer_blocks.1"):
        parse(["single_transformer_blocks.1.attention"], HUNYUAN, BOTH)


# What is left


def test_what_is_left_is_told_by_the_teacher_s_numbers() -> None:
    first = Pruning.none("t", EIGHT).further(
        [Unit("transformer_blocks", 1), Unit("transformer_blocks", 4, "attention")]
    )
    assert first.left == {"transformer_blocks": [0, 2, 3, 4, 5, 6, 7]}
    assert first.halves == ("transformer_blocks.3.attention",)
    assert first.original(Unit("transformer_blocks", 3, "feed_forward")) == "transformer_blocks.4.feed_forward"
    second = first.further([Unit("transformer_blocks", 0), Unit("transformer_blocks", 4)])
    assert second.left == {"transformer_blocks": [2, 3, 4, 6, 7]} and second.counts == {"transformer_blocks": 5}
    assert second.halves == ("transformer_blocks.2.attention",)
    assert names(second.gone) == [*(f"transformer_blocks.{i}" for i in (0, 1, 5)), "transformer_blocks.4.attention"]
    assert second.is_part_of(first) and second.is_part_of(second) and not first.is_part_of(second)
    block = Pruning.none("t", EIGHT).further([Unit("transformer_blocks", i) for i in (1, 4)])
    assert block.is_part_of(first) and not first.is_part_of(block), "a block lacks both of its halves"
    third = second.further([Unit("transformer_blocks", 2)])
    assert third.halves == () and third.is_less
    with pytest.raises(ValueError, match="gone already"):
        second.completed([Unit("transformer_blocks", 2, "attention")])
    rest = [Unit("transformer_blocks", 2, "feed_forward"), Unit("transformer_blocks", 0)]
    assert second.completed(rest) == [Unit("transformer_blocks", 2), Unit("transformer_blocks", 0)]
    with pytest.raises(ValueError, match="leaves nothing"):
        second.completed([*rest, *(Unit("transformer_blocks", i) for i in (1, 3, 4))])
    assert not Pruning.none("t", EIGHT).is_less


def test_pruning_json_comes_back(tmp_path: Path) -> None:
    left = Pruning.none("t", EIGHT).further([Unit("transformer_blocks", 6), Unit("transformer_blocks", 7, "attention")])
    left.write(tmp_path)
    assert read_pruning(tmp_path) == left
    assert read_pruning(tmp_path / "elsewhere") is None
    (tmp_path / "pruning.json").write_text("{}")
    with pytest.raises(ValueError, match="can't be read"):
        read_pruning(tmp_path)


# Every family, to the bit


def first_units(lists: Any, counts: dict[str, int]) -> list[Unit]:
    """One block of each list that can lose one, and an attention and a feed-forward of what stays."""
    found: list[Unit] = []
    for blocks in lists:
        if counts[blocks.name] > 1:
            found.append(Unit(blocks.name, 0))
        found += [Unit(blocks.name, counts[blocks.name] - 1, "attention")] if blocks.halves else []
    return found


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    kind = diffusers_class(FAMILIES[request.param].load(folder, weights=False).family.classes["transformer"])
    config = json.loads((folder / "transformer" / "config.json").read_text())
    layers = {key: max(2, config[key]) for key in ("num_layers", "num_single_layers") if key in config}
    torch.manual_seed(0)
    kind.from_config(config | layers).save_pretrained(folder / "transformer")  # layers enough that one can go
    return request.param, folder


@torch.no_grad()
def test_a_folder_computes_what_skipping_computes(family: tuple[str, Path], tmp_path: Path) -> None:
    """Saved and read again, the network without units gives the output of the whole one that skips them."""
    from dollar.export.student import few_steps, load_student, save_student

    name, folder = family
    teacher = FAMILIES[name].load(folder)
    lists, whole = teacher.family.block_lists, teacher.denoiser.network
    settle(whole)
    counts = counts_of(teacher.pipeline.config("transformer"), lists)
    x = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    t, condition = teacher.grid(2)[:1].expand(2), teacher.text(["a", "b"])
    outputs = {}
    for which, units in {
        "blocks": [u for u in first_units(lists, counts) if not u.half],
        "all": first_units(lists, counts),
    }.items():
        assert units
        pruning = teacher.pruning().further(units)
        network: Any = teacher.empty_network()
        network.load_state_dict(whole.state_dict(), assign=True)
        take_out(network.transformer, units, lists)
        samplers = few_steps(teacher, None, [1], "ddim")
        card = {"cycle": 0, "trained": 0, "guided": True}
        save_student(tmp_path / which, teacher, network, samplers, card, pruning=pruning)
        read = load_student(tmp_path / which, teacher).denoiser.network
        settle(read)
        with without(whole.transformer, units, lists):
            outputs[which] = whole(x, t, condition)
        assert torch.equal(read(x, t, condition), outputs[which])
        assert not torch.equal(whole(x, t, condition), outputs[which])  # which is itself again
        kept = sum(p.numel() for p in read.parameters())
        assert kept < sum(p.numel() for p in whole.parameters())
        assert sorted(names(read_pruning(tmp_path / which).gone)) == sorted(names(units))  # type: ignore[union-attr]
        full, left = dense(teacher, read, pruning)
        settle(full)
        assert torch.equal(full(x, t, condition), outputs[which]) and not left.halves
    # Without whole blocks it is a folder of diffusers.
    kind = diffusers_class(teacher.family.classes["transformer"])
    plain = teacher.family.network(kind.from_pretrained(tmp_path / "blocks" / "transformer"))
    settle(plain)
    assert torch.equal(plain(x, t, condition), outputs["blocks"])


def test_counts_and_weights_that_disagree_are_refused(family: tuple[str, Path], tmp_path: Path) -> None:
    from dollar.export.student import few_steps, save_student

    name, folder = family
    teacher = FAMILIES[name].load(folder)
    lists = teacher.family.block_lists
    counts = counts_of(teacher.pipeline.config("transformer"), lists)
    units = [u for u in first_units(lists, counts) if not u.half][:1]
    network: Any = teacher.empty_network()
    network.load_state_dict(teacher.denoiser.network.state_dict(), assign=True)
    take_out(network.transformer, units, lists)
    samplers = few_steps(teacher, None, [1], "ddim")
    save_student(tmp_path / "s", teacher, network, samplers, {}, pruning=teacher.pruning().further(units))
    config = tmp_path / "s" / "transformer" / "config.json"
    stored = json.loads(config.read_text())
    key = next(blocks.count for blocks in lists if blocks.name == units[0].list)
    config.write_text(json.dumps(stored | {key: stored[key] + 1}))
    with pytest.raises(ValueError, match="diffusers would leave blocks empty"):
        teacher.load_network(tmp_path / "s")
    (tmp_path / "s" / "pruning.json").unlink()  # now the counts are the teacher's again, and the weights aren't
    with pytest.raises(ValueError, match=r"disagree with its config.json: they lack"):
        teacher.load_network(tmp_path / "s")


def test_what_is_left_of_another_teacher_is_refused(family: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = family
    teacher = FAMILIES[name].load(folder)
    teacher.pruning().further([]).write(tmp_path)
    stored = json.loads((tmp_path / "pruning.json").read_text())
    (tmp_path / "pruning.json").write_text(json.dumps(stored | {"teacher": "another"}))
    with pytest.raises(ValueError, match="what is left of another with .*; give teacher=another"):
        teacher.pruning(tmp_path)


def test_units_by_name() -> None:
    assert unit_of("blocks.3.attention") == Unit("blocks", 3, "attention")
    assert unit_of("blocks.3") == Unit("blocks", 3)

"""The shapes world: its captions, its splits, and that every clip is what its caption and seed say."""

from __future__ import annotations

import numpy as np
import pytest

from dollar.data import shapes


def test_captions_are_all_combinations_and_parse_back() -> None:
    captions = shapes.captions("all")
    assert len(captions) == len(set(captions)) == 1152
    assert all(shapes.caption(shapes.parse(caption)) == caption for caption in captions)
    assert {len(caption.split()) for caption in captions} == {10}


def test_parse_forgives_case_and_spaces_but_not_other_texts() -> None:
    assert shapes.parse("  A small RED circle moving left  on a black background").colour == "red"
    for text in ("", "a dog", "a small red circle on a black background", "a small red circle moving left"):
        with pytest.raises(ValueError, match="is not a caption of the shapes world"):
            shapes.parse(text)


def test_splits_are_disjoint_fixed_and_complete() -> None:
    train, held_out = shapes.captions("train"), shapes.captions("held_out")
    assert (len(train), len(held_out)) == (922, 230)
    assert set(train).isdisjoint(held_out)
    assert sorted(train + held_out) == sorted(shapes.captions("all"))
    assert train == shapes.captions("train")
    with pytest.raises(ValueError, match="unknown split"):
        shapes.captions("test")


def test_every_value_of_every_attribute_is_in_both_splits() -> None:
    for split in ("train", "held_out"):
        seen = [set(values) for values in zip(*map(shapes.parse, shapes.captions(split)), strict=True)]
        assert [len(values) for values in seen] == [2, 6, 4, 6, 4]


def test_a_clip_is_a_function_of_caption_and_seed() -> None:
    first, second = shapes.ALL_ATTRIBUTES[7], shapes.ALL_ATTRIBUTES[800]
    clip = shapes.render(first, seed=3)
    assert clip.shape == (shapes.FRAMES, shapes.HEIGHT, shapes.WIDTH, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, shapes.render(first, seed=3))
    assert not np.array_equal(clip, shapes.render(first, seed=4))
    # The draw also depends on the caption: the same seed does not put every object at one place.
    assert not np.array_equal(shapes.render(second, 3), shapes.render(second._replace(colour="red"), 3))


@pytest.mark.parametrize("motion", shapes.MOTIONS)
def test_the_object_stays_inside_the_picture(motion: str) -> None:
    rng = np.random.default_rng(0)
    for radius in (shapes.SIZES["small"][0], shapes.SIZES["large"][1]):
        for _ in range(200):
            centres = shapes.trajectory(motion, radius, rng).centres
            reach = shapes.EXTENT * radius
            assert centres.min() - reach >= 0
            assert centres.max() + reach <= shapes.WIDTH - 1 + 1e-9


@pytest.mark.parametrize("motion", shapes.MOTIONS)
def test_trajectories_move_as_they_are_called(motion: str) -> None:
    path = shapes.trajectory(motion, radius=8.0, rng=np.random.default_rng(1))
    steps = np.diff(path.centres, axis=0)
    if motion == "circling around":
        turns = np.cross(np.c_[steps[:-1], np.zeros(15)], np.c_[steps[1:], np.zeros(15)])[:, 2]
        assert (turns > 0).all()  # clockwise, for y points down
    else:
        sign = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[motion.split()[-1]]
        np.testing.assert_allclose(steps, np.tile(path.speed * np.array(sign), (16, 1)), atol=1e-9)


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_no_shape_reaches_beyond_its_extent(shape: str) -> None:
    angle = np.linspace(0, 2 * np.pi, 720)
    reach = shapes.EXTENT * 10 + 1e-6
    corners = {
        "square": 0.88 * np.sqrt(2),
        "cross": np.hypot(1, shapes.ARM),
    }  # the corner of a box, not of its bounding circle
    reach = max(reach, 10 * corners.get(shape, 0) + 1e-6)
    assert (shapes.signed_distance(shape, reach * np.cos(angle), reach * np.sin(angle), 10.0) > -1e-6).all()
    assert shapes.signed_distance(shape, np.array(0.0), np.array(0.0), 10.0) < 0
    with pytest.raises(ValueError, match="unknown shape"):
        shapes.signed_distance("star", np.array(0.0), np.array(0.0), 10.0)

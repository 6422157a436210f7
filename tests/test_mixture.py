"""Mixtures: exact shares in every 1,000 samples, each source's own samples in order, the same from any start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dollar.data.latents import Batch
from dollar.data.mixture import BLOCK, Mixture, shares
from dollar.data.prompts import PromptData


class Counting:
    """A source whose sample i is the number i, under the caption of its place."""

    has_latents = True

    def __init__(self, name: str, size: int) -> None:
        self.name, self.captions, self.told = name, [f"{name} {i}" for i in range(size)], []

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, samples: Sequence[int], latents: bool = True) -> Batch:
        places = [i % len(self) for i in samples]
        made = torch.tensor(list(samples), dtype=torch.float32).reshape(-1, 1, 1, 1, 1) if latents else None
        return Batch(
            [self.captions[place] for place in places], made, [(place, i % 3) for i, place in enumerate(places)]
        )

    def ahead(self, samples: Sequence[int]) -> None:
        self.told += samples

    def identity(self) -> dict[str, int]:
        return {self.name: len(self)}


def mixed(weights: Sequence[float] | None = (0.5, 0.3, 0.2), seed: int = 0) -> Mixture:
    return Mixture([Counting("a", 700), Counting("b", 200), Counting("c", 100)], weights, seed)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1, 1], [500, 500]),
        ([1, 1, 1], [334, 333, 333]),
        ([2, 1], [667, 333]),
        ([0.0004, 0.0006, 0.0010], [200, 300, 500]),
        ([1, 998.6, 0.4 + 1e-6], [1, 999, 0]),
    ],
)
def test_shares_are_by_largest_remainder(weights: list[float], counts: list[int]) -> None:
    if 0 in counts:
        with pytest.raises(ValueError, match="a source would never be seen"):
            shares(weights, len(weights))
    else:
        assert shares(weights, len(weights)) == counts


def test_each_thousand_has_exact_shares_and_each_source_its_samples_in_order() -> None:
    mixture = mixed()
    places = [mixture.place(i) for i in range(3 * BLOCK)]
    for block in range(3):
        assert Counter(source for source, _ in places[BLOCK * block :][:BLOCK]) == {0: 500, 1: 300, 2: 200}
    for source, per_block in enumerate((500, 300, 200)):
        assert [position for s, position in places if s == source] == list(range(3 * per_block))
    order = [source for source, _ in places]
    assert order[:BLOCK] != order[BLOCK : 2 * BLOCK] and order[:BLOCK] != sorted(order[:BLOCK])
    assert [mixed(seed=1).place(i)[0] for i in range(BLOCK)] != order[:BLOCK]


def test_a_fresh_mixture_goes_on_where_one_walked_to() -> None:
    mixture = mixed()
    walked = [mixture.batch(range(i, i + 8)) for i in range(0, 2400, 8)][-1]
    fresh = mixed().batch(range(2392, 2400))
    assert fresh.prompts == walked.prompts and fresh.keys == walked.keys
    assert torch.equal(fresh.latents, walked.latents)


def test_a_batch_is_in_the_order_it_was_asked_for() -> None:
    mixture = mixed()
    samples = list(range(40, 20, -1))
    batch = mixture.batch(samples)
    for i, sample in enumerate(samples):
        source, position = mixture.place(sample)
        assert batch.prompts[i] == f"{'abc'[source]} {position}" and float(batch.latents[i]) == position
    assert mixture.batch(samples, latents=False).latents is None


def test_keys_are_unique_and_lead_to_captions() -> None:
    mixture = mixed(None)
    assert mixture.counts == [700, 200, 100] and len(mixture) == len(mixture.captions) == 1000
    batch = mixture.batch(range(1000))
    assert [mixture.captions[clip] for clip, _ in batch.keys] == batch.prompts
    assert {clip for clip, _ in batch.keys} == set(range(1000))
    assert mixture.captions[-1] == "c 99" and mixture.captions[699:701] == ["a 699", "b 0"]
    with pytest.raises(IndexError):
        mixture.captions[1000]


def test_each_source_is_told_which_of_its_samples_come() -> None:
    mixture = mixed()
    mixture.ahead(range(200, 400))
    for number, source in enumerate(mixture.sources):
        expected = [p for s, p in (mixture.place(i) for i in range(200, 400)) if s == number]
        assert source.told == expected


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (0.5, "weights are 0.5; give a list of numbers"),
        (["a", 1, 1], "give a list of numbers"),
        ([1, 2], "2 weights for 3 sources"),
        ([1, 0, 1], "must be positive"),
        ([1, float("nan"), 1], "must be positive"),
    ],
)
def test_weights_that_name_no_shares_are_told(weights: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mixed(weights)


def test_an_identity_is_every_sources_own() -> None:
    assert mixed().identity() == {
        "shares": [500, 300, 200],
        "source 1": {"a": 700},
        "source 2": {"b": 200},
        "source 3": {"c": 100},
    }
    assert PromptData(["a", "b"], 0).identity() == PromptData(["a", "b"], 1).identity()
    assert PromptData(["a", "b"], 0).identity() != PromptData(["ab", ""], 0).identity()


# Prompts alone


def test_prompts_come_once_an_epoch_in_a_new_order_from_a_file_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(11)))
    data = PromptData(tmp_path / "prompts.txt", seed=1)
    epochs = [data.batch(range(11 * e, 11 * (e + 1)), latents=False).prompts for e in range(3)]
    assert all(sorted(epoch) == sorted(data.captions) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = PromptData([f"prompt {i}" for i in range(11)], seed=1)
    batch = again.batch([13, 5], latents=False)
    assert batch.prompts == [epochs[1][2], epochs[0][5]] and batch.latents is None
    assert [again.captions[place] for place, _ in batch.keys] == batch.prompts


def test_latents_of_prompts_alone_are_refused() -> None:
    data = PromptData(["a"], seed=0)
    with pytest.raises(ValueError, match=r"prompts alone.*beta_cd=0 and student\.input=simulate"):
        data.batch([0])
    assert not Mixture([data, Counting("a", 3)], [1, 1], 0).has_latents
    with pytest.raises(ValueError, match="not one prompt"):
        PromptData([], seed=0)

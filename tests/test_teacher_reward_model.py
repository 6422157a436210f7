"""The latent reward model on the teacher's first blocks, for every family, on a tiny folder of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import fingerprint
from families import FAMILIES, PROMPT, build
from torch import Tensor

from dollar.diffusion.draws import Draws
from dollar.diffusion.schedule import diffuse
from dollar.models.reward_models import make_reward_model
from dollar.models.teacher import Teacher
from dollar.models.teacher_reward_model import QueryHead, TeacherRewardModel, first_blocks, weights_hash
from dollar.surrogate.latent_reward import LatentReward

OTHER = "a large green square standing still on a white background"


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = build(request.param, tmp_path_factory.mktemp(request.param) / "teacher")
    return FAMILIES[request.param].load(folder)


def model_of(teacher: Teacher, blocks: int = 1) -> TeacherRewardModel:
    torch.manual_seed(0)
    model = make_reward_model(teacher, "teacher", width=16, blocks=blocks)
    assert isinstance(model, TeacherRewardModel)
    return model


def latents(teacher: Teacher, count: int = 2) -> Tensor:
    return torch.randn(count, *teacher.latent_shape, generator=torch.Generator().manual_seed(1))


def times(teacher: Teacher, *fractions: float) -> Tensor:
    return teacher.denoiser.schedule.uniform(torch.tensor(fractions))


def test_the_hidden_states_are_those_of_the_teachers_own_forward(teacher: Teacher) -> None:
    x, t, condition = latents(teacher), times(teacher, 0.2, 0.7), teacher.text([PROMPT, OTHER])
    seen: list[Tensor] = []

    def keep(_: object, __: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    for blocks in (1, 2):
        handle = teacher.denoiser.network.blocks[blocks - 1].register_forward_hook(keep)
        teacher.denoiser.output(x, t, condition)
        handle.remove()
        found = model_of(teacher, blocks).hidden(x, condition, t)
        assert torch.equal(found, seen[-1])
        assert len(found) == 2 and found.ndim == 3


def test_blocks_that_are_not_kept_do_not_run_and_the_teacher_is_left_alone(teacher: Teacher) -> None:
    network = teacher.denoiser.network
    blocks, before = list(network.blocks), fingerprint(network)
    children = {name: list(module._modules) for name, module in network.named_modules()}
    calls = [0] * len(blocks)

    def count(number: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[number] += 1

        return hook

    handles = [block.register_forward_hook(count(i)) for i, block in enumerate(blocks)]
    model = model_of(teacher)
    x, t, condition = latents(teacher), times(teacher, 0.2, 0.7), teacher.text([PROMPT, OTHER])
    model(x, condition, t)
    assert calls == [1, 0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(x, condition, t).sum().backward()
    optimizer.step()
    teacher.denoiser.output(x, t, condition)
    assert calls == [3, 1]  # all of the teacher's own still run, and nothing of ours hangs on them
    assert all(len(block._forward_hooks) == 1 for block in blocks)
    for handle in handles:
        handle.remove()
    assert torch.equal(fingerprint(network), before)
    assert all(p.grad is None for p in network.parameters())
    assert {name: list(module._modules) for name, module in network.named_modules()} == children


def test_weights_are_shared_and_only_the_head_is_the_modules_own(teacher: Teacher) -> None:
    model, network = model_of(teacher), teacher.denoiser.network
    theirs = {id(p) for p in network.parameters()}
    trunk = list(model.trunk.network.parameters())
    assert {id(p) for p in trunk} < theirs
    width = network.transformer.config.num_attention_heads * network.transformer.config.attention_head_dim
    # Norm, query, key, value with bias, the MLP's inner layer and the output.
    expected = 2 * width + 16 + 16 * width + 16 * (width + 1) + 16 * 17 + 17
    assert sum(p.numel() for p in model.parameters()) == expected
    assert not theirs & {id(p) for p in model.parameters()}
    assert all(name.startswith("head.") for name in model.state_dict())


def test_its_gradient_at_the_latent_depends_on_caption_and_time(teacher: Teacher) -> None:
    model, x = model_of(teacher), latents(teacher, 1).requires_grad_()

    def gradient(prompt: str, fraction: float) -> Tensor:
        loss = model(x, teacher.text([prompt]), times(teacher, fraction)).sum()
        return torch.autograd.grad(loss, x)[0]

    base = gradient(PROMPT, 0.2)
    assert base.isfinite().all() and base.abs().mean() > 0
    assert torch.equal(base, gradient(PROMPT, 0.2))
    for other in (gradient(OTHER, 0.2), gradient(PROMPT, 0.8)):
        assert (base - other).abs().mean() > 1e-4 * base.abs().mean()


def test_it_is_noised_as_its_fit_and_clean_without_draws(teacher: Teacher) -> None:
    model, schedule = model_of(teacher), teacher.denoiser.schedule
    surrogate = LatentReward(model, None, teacher.text, noised=(0.1, 0.6), schedule=schedule)
    x, condition, draws = latents(teacher), teacher.text([PROMPT, OTHER]), Draws(0, 3, range(2))
    clean = model(x, condition, times(teacher, 0.1, 0.1))
    torch.testing.assert_close(surrogate.predict(x, condition), clean)
    u = draws.uniform("here time 0")
    t = schedule.uniform(0.1 + 0.5 * u)
    noised = diffuse(x, draws.normal("here noise 0", x.shape[1:]), t, schedule)
    torch.testing.assert_close(surrogate.predict(x, condition, draws, "here"), model(noised, condition, t))
    x.requires_grad_()
    surrogate.predict(x, condition, draws, "here").sum().backward()
    assert x.grad is not None and x.grad.abs().mean() > 0


def test_what_cannot_be_is_a_sentence(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="lrm.blocks is 3; this teacher has 1 to 2"):
        first_blocks(teacher.denoiser.network, 3)
    with pytest.raises(ValueError, match="lrm.text is false"):
        make_reward_model(teacher, "teacher", text=False)
    with pytest.raises(ValueError, match="use cnn or teacher"):
        make_reward_model(teacher, "resnet")
    with pytest.raises(ValueError, match="read a caption"):
        model_of(teacher)(latents(teacher))
    with pytest.raises(ValueError, match="two rising fractions"):
        LatentReward(model_of(teacher), None, teacher.text, noised=(0.6, 0.5), schedule=teacher.denoiser.schedule)
    weight = next(teacher.denoiser.network.parameters())
    weight.device_mesh = "two processes"
    with pytest.raises(ValueError, match="parallel.shard_teacher=false"):
        model_of(teacher)
    del weight.device_mesh


def test_it_is_saved_without_the_teacher_and_read_for_the_same_one_alone(teacher: Teacher, tmp_path: Path) -> None:
    surrogate = LatentReward(
        model_of(teacher), None, teacher.text, noised=(0.1, 0.6), schedule=teacher.denoiser.schedule
    )
    surrogate.statistics.update(torch.tensor([1.0, 2.0, 4.0]))
    surrogate.save(tmp_path, teacher)
    again = LatentReward.from_folder(tmp_path, teacher)
    x, condition = latents(teacher), teacher.text([PROMPT, OTHER])
    assert torch.equal(again.predict(x, condition), surrogate.predict(x, condition))
    assert again.noised == (0.1, 0.6)
    size = sum(p.nbytes for p in surrogate.model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < size + 2000
    weight = next(p for p in again.model.trunk.network.parameters() if p.ndim > 1)
    before = weights_hash(again.model.trunk.network)
    with torch.no_grad():
        weight[0, 0] += 1
    try:
        assert weights_hash(again.model.trunk.network) != before
        with pytest.raises(ValueError, match="another blocks"):
            LatentReward.from_folder(tmp_path, teacher)
    finally:
        with torch.no_grad():
            weight[0, 0] -= 1


def test_the_heads_query_asks_all_positions() -> None:
    torch.manual_seed(0)
    head, hidden = QueryHead(12, 8), torch.randn(2, 5, 12)
    normed = head.norm(hidden)
    share = (head.key(normed) @ head.query / 8**0.5).softmax(-1)  # [B, N], one head written out
    heard = (share[..., None] * head.value(normed)).sum(1)
    expected = head.out(heard + torch.nn.functional.silu(head.mix(heard)))[:, 0]
    torch.testing.assert_close(head(hidden), expected)
    torch.testing.assert_close(head(hidden.flip(1)), head(hidden))  # where a position is, the blocks have said
    assert share.std() > 0.01

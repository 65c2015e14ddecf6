"""Switch effects equal plain automatic differentiation of the whole model."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.fisher import fisher_probe
from evopress.evaluation.random_signs import random_signs
from evopress.evaluation.switch_effects import SwitchEffects, switch_effects, token_equivalents
from evopress.models.language_model import LanguageModel
from evopress.space.apply import applied
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import OUTSIDE, Profile, Space
from tests.tiny_models import FAMILIES, tiny, token_windows

TOKENS = token_windows(2, 12)


class Noisy(DecodedLevels):
    """Level l of a layer is its weight with 5·(l + `least`) % of noise."""

    def __init__(self, lm: LanguageModel, least: int = 1):
        self.lm = lm
        self.least = least

    def get(self, block: int, layer: str, level: int) -> Tensor:
        weight = self.lm.model.get_submodule(layer).weight.detach()
        generator = torch.Generator().manual_seed(hash((len(layer), block, level)) % 2**31)
        return weight + 0.05 * (level + self.least) * weight.std() * torch.randn(weight.shape, generator=generator)


def layers(lm: LanguageModel, tie: str = "none") -> Space:
    return layer_space(lm, RTN(bits=[2, 3, 4], group_size=32), SpaceSettings(tie=tie))


def some_profile(space: Space) -> Profile:
    return tuple((7 * i) % len(unit.levels) for i, unit in enumerate(space.units))


def effects(
    lm: LanguageModel, space: Space, weights: DecodedLevels | None, profile: Profile, **changes
) -> SwitchEffects:
    settings = dict(parts=[TOKENS], draws=2, rng=Random(5))
    return switch_effects(CompressibleModel(lm, space, weights), profile, **{**settings, **changes})


def row(space: Space, index: int, level: int) -> int:
    return sum(len(unit.levels) for unit in space.units[:index]) + level


def mean_kl(dense: Tensor, logits: Tensor) -> Tensor:
    p, q = dense.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def run(lm: LanguageModel) -> Tensor:
    return lm.model(input_ids=TOKENS, use_cache=False).logits


def outputs_shifted(lm: LanguageModel, name: str, shift: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Logits with `shift(input, output)` added to the output of one module."""

    def hook(module, args, kwargs, output):
        inputs = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return (output[0] + shift(inputs, output[0]), *output[1:])
        return output + shift(inputs, output)

    handle = lm.model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        return run(lm)
    finally:
        handle.remove()


def derivative(model: torch.nn.Module, dense: Tensor, layers: set[str], current: Tensor, other: Tensor) -> float:
    """Of the mean KL from the `dense` logits, when the weight of `layers` moves from `current` towards `other`."""
    step = torch.zeros((), requires_grad=True)
    changed = {f"{layer}.weight": current + step * (other - current) for layer in layers}
    logits = functional_call(model, changed, kwargs={"input_ids": TOKENS, "use_cache": False}).logits
    (slope,) = torch.autograd.grad(mean_kl(dense, logits), step)
    return float(slope)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_order_is_the_derivative_along_the_switch(family):
    lm = tiny(family)
    space, weights = layers(lm), Noisy(lm)
    profile = some_profile(space)
    first = effects(lm, space, weights, profile).first
    dense = run(lm).detach()
    for index in range(0, len(space), 4):
        unit, level = space.units[index], (profile[index] + 1) % 3
        (layer,), block = unit.layers, unit.blocks[0]
        current, other = (weights.get(block, layer, at) for at in (profile[index], level))
        with applied(lm, space, weights, profile) as model:
            slope = derivative(model, dense, {layer}, current, other)
        assert float(first[row(space, index, level)]) == pytest.approx(slope, rel=2e-3, abs=1e-6)
        assert float(first[row(space, index, profile[index])]) == 0


@pytest.mark.parametrize("drops", ["subblock", "block"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_with_drops_first_order_is_the_derivative_for_kept_layers_and_zero_for_the_rest(family, drops):
    lm = tiny(family)
    settings = SpaceSettings(trade="any", drops=drops)
    space, weights = layer_space(lm, RTN(bits=[2, 3, 4], group_size=32), settings), Noisy(lm)
    gone = list(space.children)[1:3]
    profile = space.normalized(tuple(int(i in gone) if i in space.children else i % 3 for i in range(len(space))))
    measured = effects(lm, space, weights, profile)
    dense = run(lm).detach()
    for index in range(len(space)):
        rows = slice(row(space, index, 0), row(space, index, len(space.units[index].levels)))
        if index not in space.tradable_units(profile, [index]):
            assert not measured.first[rows].any() and not measured.second[rows].any()
            continue
        (layer,), block, level = space.units[index].layers, space.units[index].blocks[0], (profile[index] + 1) % 3
        current, other = (weights.get(block, layer, at) for at in (profile[index], level))
        with applied(lm, space, weights, profile) as model:
            slope = derivative(model, dense, {layer}, current, other)
        assert float(measured.first[row(space, index, level)]) == pytest.approx(slope, rel=2e-3, abs=1e-6)


class RoundsEmbeddingAndHead(RTN):
    compresses_embeddings = True


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_first_order_of_embeddings_and_head_is_the_derivative_along_the_switch(family):
    """gemma2 and opt tie the head to the embeddings; gemma2 scales the embeddings and caps the logits."""
    lm = tiny(family)
    space, weights = layer_space(lm, RoundsEmbeddingAndHead(bits=[2, 3, 4], group_size=32), SpaceSettings()), Noisy(lm)
    profile = some_profile(space)
    first = effects(lm, space, weights, profile).first
    dense = run(lm).detach()
    outside = [index for index, unit in enumerate(space.units) if not unit.blocks]
    assert len(outside) == len(lm.embedding_and_head) == (2 if family == "llama" else 1)
    for index in outside:
        (layer,), level = space.units[index].layers, (profile[index] + 1) % 3
        current, other = (weights.get(OUTSIDE, layer, at) for at in (profile[index], level))
        with applied(lm, space, weights, profile) as model:
            places = {layer} if len(outside) == 2 else {layer, lm.family.head}
            slope = derivative(model, dense, places, current, other)
        assert float(first[row(space, index, level)]) == pytest.approx(slope, rel=2e-3, abs=1e-6)
        assert float(first[row(space, index, profile[index])]) == 0


def test_with_many_draws_second_order_of_the_head_is_the_kl_that_the_switch_alone_causes():
    lm = tiny("llama")
    space, weights = layer_space(lm, RoundsEmbeddingAndHead(bits=[2, 3, 4], group_size=32), SpaceSettings()), Noisy(lm)
    profile, index, small = some_profile(space), len(space) - 1, 0.1
    level = (profile[index] + 1) % 3
    second = float(effects(lm, space, weights, profile, draws=200).second[row(space, index, level)])
    current, other = (weights.get(OUTSIDE, "lm_head", at) for at in (profile[index], level))
    with applied(lm, space, weights, profile) as model, torch.no_grad():
        before = run(lm)
        changed = {"lm_head.weight": current + small * (other - current)}
        after = functional_call(model, changed, kwargs={"input_ids": TOKENS, "use_cache": False}).logits
    assert second * small**2 == pytest.approx(float(mean_kl(before.double(), after.double())), rel=0.1)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "opt"])
def test_second_order_is_the_mean_square_over_draws(family):
    lm = tiny(family)
    space, weights = layers(lm), Noisy(lm)
    profile = some_profile(space)
    second = effects(lm, space, weights, profile).second
    with applied(lm, space, weights, profile), torch.no_grad():
        q = run(lm).float().softmax(-1).flatten(0, 1)
    seed, device = Random(5).getrandbits(63), torch.device("cpu")
    signs = [random_signs(tuple(q.shape), seed=seed, draw=draw, first_row=0, device=device) for draw in range(2)]
    draws = [fisher_probe(q, of_draw).view(*TOKENS.shape, -1) for of_draw in signs]
    for index in range(1, len(space), 5):
        unit, level = space.units[index], (profile[index] + 1) % 3
        (layer,), block = unit.layers, unit.blocks[0]
        change = weights.get(block, layer, level) - weights.get(block, layer, profile[index])
        moved: list[Tensor] = []

        def shift(inputs, output, moved=moved, change=change):
            moved[:] = [inputs.detach() @ change.T, torch.zeros_like(output, requires_grad=True)]
            return moved[1]

        with applied(lm, space, weights, profile):
            logits = outputs_shifted(lm, layer, shift).float()
            total = 0.0
            for draw in draws:
                (gamma,) = torch.autograd.grad((logits * draw).sum(), moved[1], retain_graph=True)
                total += float((gamma * moved[0]).sum(-1).square().sum())
        assert float(second[row(space, index, level)]) == pytest.approx(total / (4 * TOKENS.numel()), rel=2e-3)


def test_with_many_draws_second_order_is_the_kl_that_the_switch_alone_causes():
    lm = tiny("llama")
    space, weights = layers(lm), Noisy(lm)
    profile, index = some_profile(space), len(space) - 1  # the last layer, whose output affects no other token
    level = (profile[index] + 1) % 3
    second = float(effects(lm, space, weights, profile, draws=200).second[row(space, index, level)])
    (layer,), block = space.units[index].layers, space.units[index].blocks[0]
    current, other = (weights.get(block, layer, at) for at in (profile[index], level))
    small = 0.1
    with applied(lm, space, weights, profile) as model, torch.no_grad():
        before = run(lm)
        changed = {f"{layer}.weight": current + small * (other - current)}
        after = functional_call(model, changed, kwargs={"input_ids": TOKENS, "use_cache": False}).logits
    assert second * small**2 == pytest.approx(float(mean_kl(before.double(), after.double())), rel=0.1)


def test_effects_of_tied_layers_include_all_of_them():
    lm = tiny("llama")
    single, tied, weights = layers(lm), layers(lm, tie="engine"), Noisy(lm)
    apart = effects(lm, single, weights, single.uniform(1))
    together = effects(lm, tied, weights, tied.uniform(1))
    position = {unit.layers[0]: index for index, unit in enumerate(single.units)}
    for index, unit in enumerate(tied.units):
        for level in (0, 2):
            rows = [row(single, position[layer], level) for layer in unit.layers]
            at = row(tied, index, level)
            torch.testing.assert_close(together.first[at], apart.first[rows].sum())
            if len(rows) == 1:
                torch.testing.assert_close(together.second[at], apart.second[rows[0]])
            else:  # at most the square of the summed magnitudes
                assert 0 < float(together.second[at]) <= float(apart.second[rows].sqrt().sum().square())


def test_first_order_does_not_depend_on_how_tokens_are_split():
    lm = tiny("gemma2")
    space, weights = layers(lm), Noisy(lm)
    profile = some_profile(space)
    whole = effects(lm, space, weights, profile)
    parts = effects(lm, space, weights, profile, parts=TOKENS.split(1))
    torch.testing.assert_close(parts.first, whole.first, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(parts.second.sum(), whole.second.sum(), rtol=0.5, atol=0)


def test_a_process_without_a_part_of_the_tokens_adds_nothing(monkeypatch):
    lm = tiny("llama")
    space, weights = layers(lm), Noisy(lm)
    whole = effects(lm, space, weights, some_profile(space))
    weighted = [whole * TOKENS.numel()]
    monkeypatch.setattr("evopress.runtime.distributed.share", lambda items: [])
    monkeypatch.setattr("evopress.runtime.distributed.gather", lambda value: [value, weighted])
    torch.testing.assert_close(effects(lm, space, weights, some_profile(space)).first, whole.first)


def test_first_order_is_zero_at_the_dense_model():
    lm = tiny("llama")
    space = layers(lm)
    measured = effects(lm, space, Noisy(lm, least=0), space.uniform(0))
    assert float(measured.first.abs().max()) < 1e-6 < float(measured.second.max())


def test_probes_have_the_fisher_information_as_covariance():
    q = torch.tensor([0.6, 0.3, 0.1, 0.0])
    signs = random_signs((40_000, 4), seed=0, draw=0, first_row=0, device=torch.device("cpu"))
    z = fisher_probe(q.expand(40_000, 4), signs)
    torch.testing.assert_close(z.T @ z / len(z), q.diag() - q[:, None] * q, rtol=0, atol=5e-3)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-2)


def test_rows_are_first_and_second_order_of_each_switch():
    assert SwitchEffects(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1 / 3])).rows() == [[1.0, 0.5], [-2.0, 0.333333]]


def test_token_equivalents_count_every_pass():
    lm = tiny("llama")
    assert token_equivalents(layers(lm), 100, draws=2) == 100 * (3 + 6 + 2)

"""The weights of calibration tokens are squared gradients of the whole model, and weigh the Hessians."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from evopress.compressors.hessian import RunningHessian
from evopress.database.build import BatchLimits, build_database
from evopress.database.calibration import embed_windows
from evopress.database.token_weights import draw_labels, role, weigh_tokens
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from tests.databases import database_in, recording_gptq
from tests.tiny_models import FAMILIES, WITH_EXPERTS, random_model, tiny, token_windows, tokenizer

WINDOWS = token_windows(3, 20)
UNIFORMS = torch.rand(WINDOWS.shape, generator=torch.Generator().manual_seed(0))


def squared_gradients(lm: LanguageModel, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Σ ‖∂ log q(labels)/∂y‖² over the layers of a group, (tokens,), by autograd through the whole model."""
    outputs: dict[str, torch.Tensor] = {}

    def watch(name: str, output: torch.Tensor) -> torch.Tensor:
        outputs[name] = output if output.requires_grad else output.requires_grad_()
        outputs[name].retain_grad()
        return outputs[name]

    groups = [
        [lm.layer_name(block, local) for local in group]
        for block in range(lm.num_blocks)
        for group in lm.layer_groups(block)
    ]
    handles = [
        lm.model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: watch(name, output))
        for group in groups
        for name in group
    ]
    logits = lm.model(input_ids=WINDOWS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum").backward()
    squares = {name: output.grad.square().sum(-1).flatten() for name, output in outputs.items()}
    return {group[0]: sum(squares[name] for name in group) / len(group) for group in groups if group[0] in squares}


def labels_of(lm: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        log_q = lm.model(input_ids=WINDOWS, use_cache=False).logits.float().log_softmax(-1)
    return draw_labels(log_q.flatten(0, 1), UNIFORMS.flatten())


@torch.no_grad()
def weights_by_name(lm: LanguageModel) -> list[dict[str, torch.Tensor]]:
    hidden, kwargs = lm.embed(WINDOWS)
    (weights,) = weigh_tokens(lm, {5: [hidden]}, kwargs, {5: [UNIFORMS]})[5]
    return weights


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_squared_gradients_of_the_whole_model(family):
    lm = tiny(family)
    expected, weights = squared_gradients(lm, labels_of(lm)), weights_by_name(lm)
    assert sum(map(len, weights)) == len(expected)
    for block, by_role in enumerate(weights):
        for local, values in by_role.items():
            gradient = expected[lm.layer_name(block, local)].sqrt()
            torch.testing.assert_close(values, gradient, rtol=1e-3, atol=1e-4 * float(gradient.max()))


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_experts_share_the_mean_of_the_weights_that_a_token_has_in_each(family):
    lm = tiny(family)
    expected, weights = squared_gradients(lm, labels_of(lm)), weights_by_name(lm)
    for block, by_role in enumerate(weights):
        experts = [group[0] for group in lm.layer_groups(0) if role(group[0]) != group[0]]
        assert experts
        for name in {role(local) for local in experts}:
            parts = [
                (lm.routed_tokens(block, local), expected.get(lm.layer_name(block, local)))
                for local in experts
                if role(local) == name
            ]
            total = torch.zeros(2, WINDOWS.numel())
            for positions, squares in parts:
                if squares is not None:
                    total[0].index_add_(0, positions, squares)
                    total[1].index_add_(0, positions, torch.ones_like(squares))
            torch.testing.assert_close(by_role[name], (total[0] / total[1]).sqrt(), rtol=1e-3, atol=1e-3)


def test_labels_follow_the_predictions():
    log_q = torch.tensor([[0.7, 0.0, 0.3]]).log().expand(1000, 3)
    labels = draw_labels(log_q, torch.arange(1000) / 1000)
    assert [(labels == label).sum() for label in range(3)] == [700, 0, 300]
    assert draw_labels(torch.tensor([[0.0, 1.0]]).log(), torch.zeros(1)) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_a_weighted_hessian_is_the_sum_of_weighted_products(dtype, tolerance):
    X, weights = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)).to(dtype), torch.rand(300) * 1e-6
    hessian = RunningHessian(24)
    for part, part_weights in zip(X.split(128), weights.split(128), strict=True):
        hessian.update(part, part_weights)
    expected = 2 / 300 * (X.double() * weights[:, None]).t() @ X.double()
    error = (hessian.result().double() - expected).norm() / expected.norm()
    assert float(error) < tolerance


@pytest.mark.parametrize("family", ["llama", *WITH_EXPERTS])
def test_hessians_weigh_the_tokens_that_a_layer_sees(family, tmp_path):
    """In the first block, whose inputs are those of the dense model."""
    lm = tiny(family)
    compressor, groups = recording_gptq()
    build_database(lm, compressor, WINDOWS, database_in(tmp_path), limits=BatchLimits(batch_tokens=60))
    states = embed_windows(lm, WINDOWS, batch_tokens=60, states_gb=1, folder=tmp_path, with_weights=True)
    (chunk,) = states.batches
    with torch.no_grad():
        for group in [group for group in groups if ".layers.0." in group.names[0]]:
            seen: list[torch.Tensor] = []
            layer = lm.model.get_submodule(group.names[0])
            handle = layer.register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(args[0].flatten(0, -2))
            )
            lm.run_block(0, states.batches[chunk][0], states.kwargs[0])
            handle.remove()
            local = group.names[0].removeprefix(f"{lm.block_names[0]}.")
            weights = states.token_weights[chunk][0][0][role(local)]
            positions = lm.routed_tokens(0, local)
            weights = weights if positions is None else weights[positions]
            X = torch.cat(seen)
            if len(X) < X.shape[1]:
                continue  # mixed with the identity
            expected = 2 / len(X) * (X.double() * weights[:, None]).t() @ X.double()
            scale = float(expected.abs().max())
            torch.testing.assert_close(group.hessian.double(), expected, rtol=1e-3, atol=1e-4 * scale)


def test_without_weights_all_tokens_count_alike(tmp_path):
    lm = tiny("llama")
    weighted, plain = (recording_gptq(weigh_tokens=flag) for flag in (True, False))
    for name, (compressor, _) in (("weighted", weighted), ("plain", plain)):
        build_database(lm, compressor, WINDOWS, database_in(tmp_path / name), limits=BatchLimits(batch_tokens=60))
    (first, *_), (other, *_) = weighted[1], plain[1]
    assert first.names == other.names
    assert not torch.allclose(first.hessian / first.hessian.trace(), other.hessian / other.hessian.trace(), rtol=1e-2)


@torch.no_grad()
def test_in_a_block_without_influence_all_tokens_count_alike(tmp_path):
    """Small inputs times small weights must not lose their digits."""
    lm = wrap_model(random_model("llama"), tokenizer(), "tiny-llama")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        lm.linear(0, name).weight.zero_()
    lm.blocks[0].get_submodule("input_layernorm").weight.mul_(1e-3)
    hessians = []
    for with_weights in (True, False):
        states = embed_windows(lm, WINDOWS, batch_tokens=20, states_gb=1, folder=tmp_path, with_weights=with_weights)
        hessian = next(iter(states.hessians(0).values())).result()
        hessians.append(hessian / hessian.trace())
    torch.testing.assert_close(*hessians, rtol=1e-4, atol=1e-7)

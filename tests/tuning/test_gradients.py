"""The block-by-block gradients are those of the whole model."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import kl_div

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.rtn import RTN
from evopress.evaluation.evaluator import Evaluator
from evopress.space.build import drop_space
from evopress.tuning.gradients import gradient_groups
from evopress.tuning.parameters import final_norm_name
from evopress.tuning.tunable_model import TunableModel, tunable_model
from tests.tiny_models import token_windows
from tests.tuning.models import tunable_context

KINDS = frozenset({"scales", "norms", "weights"})
RTN3 = RTN(bits=[4, 3], group_size=32)
SPARSE = Magnitude(base=0.5, num_levels=2, step=512)
BLOCKS = GGUF(types=["Q8_0", "Q4_1", "Q4_0"])


def moved(model: TunableModel) -> TunableModel:
    """The model with random small changes of all parameters, in float64."""
    generator = torch.Generator().manual_seed(0)
    for name, change in model.changes.items():
        model.changes[name] = 0.01 * torch.randn(change.shape, generator=generator, dtype=torch.float64)
    return model


def whole_model_gradients(model: TunableModel, tokens: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The mean KL and its gradients by plain autograd through the whole model, all of whose weights are decoded."""
    lm = model.lm
    leaves = {name: change.clone().requires_grad_() for name, change in model.changes.items()}
    parameters = {}
    for block, choice in enumerate(model.choices(model.profile)):
        weights = model.decoded(block, choice, leaves)
        parameters |= {f"{lm.layer_name(block, local)}.weight": weight for local, weight in weights.items()}
    final_norm = model.final_norm_weight(leaves)
    parameters |= {} if final_norm is None else {final_norm_name(lm): final_norm}
    outside = model.embedding_and_head(model.profile)
    names = {f"{lm.embeddings_name}.weight": outside.embeddings, f"{lm.family.head}.weight": outside.head}
    parameters |= {name: weight for name, weight in names.items() if weight is not None}
    log_p = lm.model(tokens).logits.log_softmax(-1)
    dropped = {block: choice.dropped for block, choice in enumerate(model.choices(model.profile))}
    with lm.replaced({}, dropped):
        log_q = functional_call(lm.model, parameters, (tokens,)).logits.log_softmax(-1)
    kl = kl_div(log_q, log_p, reduction="sum", log_target=True) / tokens.numel()
    gradients = torch.autograd.grad(kl, list(leaves.values()))
    return float(kl.detach()), dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize(
    ("family", "compressor"),
    [("llama", RTN3), ("llama", BLOCKS), ("llama", SPARSE), ("qwen3", RTN3), ("gemma2", RTN3), ("opt", RTN3)],
)
def test_gradients_block_by_block_are_those_through_the_whole_model(family, compressor, tmp_path):
    context = tunable_context(compressor, tmp_path, family=family, dtype=torch.float64)
    profile = tuple(index % 2 for index in range(len(context.space)))
    model = moved(tunable_model(context.evaluator.compressible, profile, context.database, kinds=KINDS))
    tokens = token_windows(2, 12, seed=5)
    expected_kl, expected = whole_model_gradients(model, tokens)
    groups = list(gradient_groups(model, tokens))
    assert sum(group.kl for group in groups) == pytest.approx(expected_kl, rel=1e-9)
    measured = {name: gradient for group in groups for name, gradient in group.by_name.items()}
    assert measured.keys() == expected.keys() == model.changes.keys()
    for name, gradient in expected.items():
        largest = gradient.abs().max()
        assert largest > 0 and (measured[name] - gradient).abs().max() <= 1e-5 * largest, name  # norms are in float32


def test_norms_are_tuned_around_dropped_parts_and_not_inside_them(tmp_path):
    context = tunable_context(RTN3, tmp_path, family="qwen3", drops="subblock")
    units = {unit.name: index for index, unit in enumerate(context.space.units)}
    profile = list(context.space.uniform(0))
    attention = next(name for name in units if context.space.units[units[name]].kind == "attention")
    profile[units[attention]] = 1
    model = tunable_model(context.evaluator.compressible, tuple(profile), context.database, kinds=KINDS)
    first = {name for name in model.changes if name.startswith("model.layers.0.")}
    assert not any("self_attn" in name for name in first)
    assert {"model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.up_proj.scales"} <= first
    groups = list(gradient_groups(moved(model), token_windows(1, 8)))
    gradients = {name: gradient for group in groups for name, gradient in group.by_name.items()}
    assert not gradients["model.layers.0.input_layernorm.weight"].any(), "nothing reads it"
    assert gradients["model.layers.0.post_attention_layernorm.weight"].any()


@pytest.mark.parametrize("dropped", ["attention", "mlp"])
def test_dense_weights_run_just_before_or_after_a_dropped_part(dropped, tmp_path):
    context = tunable_context(RTN3, tmp_path)
    lm, space = context.lm, drop_space(context.lm, Drop())
    profile = tuple(int(unit.kind == dropped and unit.blocks == (1,)) for unit in space.units)
    assert sum(profile) == 1
    evaluator = Evaluator(lm, space, None, context.evaluator.settings)
    model = tunable_model(evaluator.compressible, profile, None, kinds=["weights"])
    beside = {"attention": {"0.mlp", "1.mlp"}, "mlp": {"1.self_attn", "2.self_attn"}}[dropped]
    assert {
        name.removeprefix("model.layers.").rpartition(".")[0].rpartition(".")[0] for name in model.changes
    } == beside
    tokens = token_windows(2, 8)
    for name, change in model.changes.items():
        model.changes[name] = 0.01 * torch.randn(change.shape, generator=torch.Generator().manual_seed(0))
    expected_kl, expected = whole_model_gradients(model, tokens)
    groups = list(gradient_groups(model, tokens))
    assert sum(group.kl for group in groups) == pytest.approx(expected_kl, rel=1e-4)
    for group in groups:
        for name, gradient in group.by_name.items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].abs().max())
            )

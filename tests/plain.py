"""Slow and simple computations that the fast ones are compared with, in tests and in experiments/speed.

Evaluation runs a whole model per candidate and window. Compression solves one layer at one level, row-major, in the
order of the papers.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import exp
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor, LayerGroup
from evopress.database.cache import DecodedLevels
from evopress.database.store import BlockLevels, Database
from evopress.models.language_model import LanguageModel
from evopress.space.apply import applied
from evopress.space.units import OUTSIDE, Profile, Space
from evopress.weights.base import CompressedWeight
from evopress.weights.grids import fit_grid, max_codes

Levels = Mapping[str, list[CompressedWeight]]
"""All levels of every layer, by full name."""

LAST_LAYERS = {"attention": ("self_attn.o_proj", "self_attn.out_proj"), "mlp": ("mlp.down_proj", "fc2")}
"""The last layer of a sub-block. When it is zero, the sub-block adds nothing."""


def layer_levels(lm: LanguageModel, compressor: Compressor) -> dict[str, list[CompressedWeight]]:
    """All levels of every layer, compressed by itself, for compressors that need no Hessian."""
    names = [lm.layer_name(block, local) for block in range(lm.num_blocks) for local in lm.layers(block)]
    names += lm.embedding_and_head if compressor.compresses_embeddings else ()
    weights = {name: lm.model.get_submodule(name).weight.detach() for name in names}
    return {name: compressor.compress(LayerGroup((name,), (weights[name],))).levels[0] for name in names}


def filled_database(lm: LanguageModel, levels: Levels, root: Path) -> Database:
    """A database that holds `levels`."""
    database = Database.open(root, "plain", {"model": lm.name})
    for block, prefix in [*enumerate(lm.block_names), (OUTSIDE, None)]:
        inside = {
            name: weights
            for name, weights in levels.items()
            if (name in lm.embedding_and_head if prefix is None else name.startswith(f"{prefix}."))
        }
        database.put(block, BlockLevels(inside, {name: [0.0] * len(weights) for name, weights in inside.items()}))
    return database


def assembled_model(lm: LanguageModel, space: Space, levels: Levels, profile: Profile) -> PreTrainedModel:
    """A copy of the whole model with the weights of `profile`. Dropped sub-blocks have a last layer of zeros."""
    model = deepcopy(lm.model)
    for unit, level in zip(space.units, profile, strict=True):
        for name in unit.layers:
            model.get_submodule(name).weight.data = levels[name][level].dense(torch.float32)
    for unit, level in zip(space.units, profile, strict=True):
        if not unit.layers and level:
            for block in unit.blocks:
                for kind in ("attention", "mlp") if unit.kind == "block" else (unit.kind,):
                    _zero_last_layer(model.get_submodule(lm.block_names[block]), kind)
    return model


def _zero_last_layer(block: torch.nn.Module, kind: str) -> None:
    modules = dict(block.named_modules())
    (layer,) = [modules[path] for path in LAST_LAYERS[kind] if path in modules]
    for parameter in layer.parameters():
        parameter.data = torch.zeros_like(parameter)


def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(windows, time, vocabulary), float32."""
    with torch.no_grad():
        return torch.cat([model(input_ids=window, use_cache=False).logits.float() for window in tokens.split(1)])


def kl(dense: Tensor, other: Tensor, top_k: int | None = None) -> Tensor:
    """KL(dense ‖ other) of each token from logits (…, vocabulary), float64."""
    dense, other = dense.double(), other.double()
    if top_k is not None:
        kept = dense.argsort(dim=-1, descending=True)[..., :top_k]
        dense, other = dense.gather(-1, kept), other.gather(-1, kept)
    p = dense.softmax(-1)
    return (p * (p.log() - other.softmax(-1).log())).sum(-1)


def cross_entropies(logits: Tensor, tokens: Tensor) -> Tensor:
    """−log p of every token but the first of its window, (windows, time − 1), float64."""
    p = logits.double().softmax(-1)
    entropies = [[-p[w, t - 1, tokens[w, t]].log() for t in range(1, tokens.shape[1])] for w in range(len(tokens))]
    return torch.tensor(entropies, dtype=torch.float64)


def kl_and_perplexity(
    lm: LanguageModel, space: Space, levels: Levels, profiles: Sequence[Profile], tokens: Tensor
) -> tuple[list[float], list[float]]:
    """Mean KL from the dense model and perplexity of each profile."""
    dense = logits(lm.model, tokens)
    compressed = [logits(assembled_model(lm, space, levels, profile), tokens) for profile in profiles]
    kls = [float(kl(dense, logits_of_profile).mean()) for logits_of_profile in compressed]
    entropies = [float(cross_entropies(logits_of_profile, tokens).mean()) for logits_of_profile in compressed]
    return kls, [exp(entropy) for entropy in entropies]


def one_at_a_time(
    lm: LanguageModel, space: Space, weights: DecodedLevels | None, profiles: Sequence[Profile], tokens: Tensor
) -> list[float]:
    """Mean KL of every profile, in the type of the model: with its weights in the model, all windows, all logits."""
    kls = []
    with torch.no_grad():
        log_p = lm.model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        for profile in profiles:
            with applied(lm, space, weights, profile) as model:
                log_q = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
            kls.append(float(kl_div(log_q, log_p, log_target=True, reduction="sum")) / tokens.numel())
    return kls


def upper_factor(H: Tensor, damp: float = 0.01) -> Tensor:
    """U with (H + damp · mean diagonal)⁻¹ = UᵀU, computed from the inverse."""
    damped = H + damp * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def gptq(W: Tensor, H: Tensor, *, bits: int, group_size: int) -> Tensor:
    """One layer at one width, dense. arXiv 2210.17323, Algorithm 1, with a group of columns as the block."""
    W, result, U = W.clone(), torch.empty_like(W), upper_factor(H)
    max_code = max_codes([bits], rows=len(W), device=W.device)
    for start in range(0, W.shape[1], group_size):
        stop = min(start + group_size, W.shape[1])
        grid = fit_grid(W[:, start:stop].t(), max_code, symmetric=False, scale_dtype=torch.float16)
        E = torch.empty(len(W), stop - start, dtype=W.dtype)
        for j in range(start, stop):
            result[:, j] = grid.decode(grid.encode(W[:, j]))
            E[:, j - start] = (W[:, j] - result[:, j]) / U[j, j]
            W[:, j:stop] -= E[:, j - start, None] * U[j, j:stop]
        W[:, stop:] -= E @ U[start:stop, stop:]
    return result


def sparsegpt(W: Tensor, H: Tensor, *, zeros: int, block_size: int, value_dtype: torch.dtype) -> Tensor:
    """One layer with `zeros` zeros, dense. arXiv 2301.00774, Algorithm 1; survivors rounded to the type of storage."""
    W, result, U = W.clone(), torch.empty_like(W), upper_factor(H)
    cols = W.shape[1]
    for start in range(0, cols, block_size):
        stop = min(start + block_size, cols)
        scores = (W[:, start:stop].abs() / U.diagonal()[start:stop]).t()
        share = zeros * stop // cols - zeros * start // cols
        pruned = torch.zeros(scores.numel(), dtype=torch.bool)
        pruned[scores.flatten().argsort(stable=True)[:share]] = True
        mask = pruned.view_as(scores).t()
        E = torch.empty(len(W), stop - start, dtype=W.dtype)
        for j in range(start, stop):
            result[:, j] = W[:, j].masked_fill(mask[:, j - start], 0).to(value_dtype)
            E[:, j - start] = (W[:, j] - result[:, j]) / U[j, j]
            W[:, j:stop] -= E[:, j - start, None] * U[j, j:stop]
        W[:, stop:] -= E @ U[start:stop, stop:]
    return result

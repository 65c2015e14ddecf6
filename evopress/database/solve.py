"""Solves the groups of one block: every layer at every level, from its weights and the Hessian of its inputs."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.hessian import RunningHessian, towards_identity
from evopress.compressors.scalars import fetch_scalars
from evopress.database.layer_groups import LayerNames, groups_of_block
from evopress.database.sharing import CompressedGroups, sendable
from evopress.models.language_model import LanguageModel
from evopress.runtime import distributed


def solve_block(
    lm: LanguageModel,
    compressor: Compressor,
    *,
    block: int,
    hessians: dict[LayerNames, RunningHessian],
    num_tokens: int,
) -> CompressedGroups:
    """The groups of a block that this process solves.

    Empties `hessians`, which were summed over `num_tokens` tokens. A compressor without Hessians gets none.

    Raises:
        ValueError: Calibration inputs or compressed weights are not finite.
    """
    _check_inputs(hessians)
    compressed = {}
    for names in distributed.share(groups_of_block(lm, block)):
        weights = tuple(
            lm.model.get_submodule(name).get_parameter("weight").to(lm.device, torch.float32) for name in names
        )
        hessian: Tensor | None = None
        notes: tuple[str, ...] = ()
        if compressor.needs_hessian:
            hessian, notes = _final_hessian(lm, names, hessians.pop(names), num_tokens=num_tokens)
        group = compressor.compress(LayerGroup(names, weights, hessian))
        compressed[names] = replace(group, notes=(*notes, *group.notes))
    _check_levels(compressed)
    return sendable(compressed)


def _final_hessian(
    lm: LanguageModel, names: LayerNames, hessian: RunningHessian, *, num_tokens: int
) -> tuple[Tensor, tuple[str, ...]]:
    """The Hessian that a group is solved with, and notes on it.

    Embeddings have no Hessian and get the identity, unless they share the head's weight. A layer of an expert that
    received fewer tokens than it has inputs gets a mixture with the identity. If it received none, it gets the identity
    alone, so all inputs count equally (as in plain rounding or pruning by magnitude).
    """
    cols = len(hessian.mean)
    is_weight_shared = len(lm.embedding_and_head) == 1
    if names == (lm.embeddings_name,) and not is_weight_shared:
        return torch.eye(cols, device=lm.device), ()
    mean = hessian.result()
    if hessian.num_tokens >= min(cols, num_tokens):
        return mean, ()
    share = hessian.num_tokens / cols
    note = (
        f"{hessian.num_tokens} tokens were routed to {names[0]}, which has {cols} inputs, so {1 - share:.0%} of "
        f"its Hessian is the identity: raise data.calibration_tokens"
    )
    return towards_identity(mean, share), (note,)


def _check_inputs(hessians: Mapping[LayerNames, RunningHessian]) -> None:
    """Raises ValueError for inputs that are not finite. Checks all groups at once, to wait for a GPU only once."""
    are_finite = fetch_scalars(*(hessian.is_finite() for hessian in hessians.values()))
    for names, is_finite in zip(hessians, are_finite, strict=True):
        if not is_finite:
            raise ValueError(
                f"the calibration inputs of {names[0]} are not finite: check the dense model, or load it in a wider "
                f"type with model.dtype=float32"
            )


def _check_levels(compressed: Mapping[LayerNames, CompressedGroup]) -> None:
    """Raises ValueError for compressed weights that are not finite. Checks all groups at once, as above."""
    tensors = [
        (name, tensor)
        for names, group in compressed.items()
        for name, weights in zip(names, group.levels, strict=True)
        for weight in weights
        for tensor in weight.tensors().values()
        if tensor.is_floating_point()
    ]
    are_finite = fetch_scalars(*(_is_finite(tensor) for _, tensor in tensors))
    for (name, tensor), is_finite in zip(tensors, are_finite, strict=True):
        if not is_finite:
            raise ValueError(
                f"compressed weights of {name} are not finite in {str(tensor.dtype).removeprefix('torch.')}: set "
                f"compress.value_dtype to a wider type, or check the weights of the dense model"
            )


def _is_finite(tensor: Tensor) -> Tensor:
    """Whether all numbers are finite. torch cannot say so of floats of one byte."""
    return (tensor if tensor.element_size() > 1 else tensor.half()).isfinite().all()

"""Compares the tensors of a checkpoint that was read back with those of the searched model, bit for bit."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evopress.export.base import Format, Searched, own_tensors
from evopress.models.experts import unpack_experts


def check_tensors(form: Format, searched: Searched, dtype: torch.dtype, model: PreTrainedModel) -> None:
    """Raise ValueError where a tensor of `model`, which was loaded from a checkpoint, is not the searched one.

    Logits do not show a small fault, because rounding hides it. The layers of dropped sub-blocks are left to the
    logits, because formats differ in what they store of them. The experts of `model` are unpacked.
    """
    unpack_experts(model, model.config.model_type)
    loaded, dense = own_tensors(model), own_tensors(searched.lm.model)
    for stored_name, name in form.stored_names(searched).items():
        if searched.is_dropped(name):
            continue
        if stored_name not in loaded:
            raise ValueError(f"{form.name}: the checkpoint has no {stored_name}")
        expected = _expected(form, searched, name, dtype, dense=dense[name])
        measured = loaded[stored_name].to(expected)
        if not torch.equal(measured, expected):
            raise ValueError(f"{form.name}: {stored_name} is not as searched: {_extent(measured, expected)}")


def _expected(form: Format, searched: Searched, name: str, dtype: torch.dtype, *, dense: Tensor) -> Tensor:
    """The tensor that a checkpoint with floats of type `dtype` holds, in the type that the model computes in."""
    compute = searched.lm.dtype
    layer = name.removesuffix(".weight")
    if layer in searched.levels:
        return searched.packed(layer).dense(compute if form.packs_levels else dtype).to(compute)
    return form.as_stored(searched, name, dense, dtype).to(compute) if dense.is_floating_point() else dense


def _extent(measured: Tensor, expected: Tensor) -> str:
    if measured.shape != expected.shape:
        return f"its shape is {tuple(measured.shape)} instead of {tuple(expected.shape)}"
    return f"{int((measured != expected).sum())} of its {expected.numel()} numbers differ"

"""Compares the tensors of a loaded checkpoint with those of the searched model, bit for bit."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evopress.export.base import Format
from evopress.export.searched import SearchedModel
from evopress.export.state import untied_tensors
from evopress.models.experts import unpack_experts


def check_tensors(
    checkpoint_format: Format, searched: SearchedModel, *, dtype: torch.dtype, model: PreTrainedModel
) -> None:
    """Raise ValueError if a tensor of `model`, which was loaded from a checkpoint, differs from the searched model's.

    Logits would not show small errors, because they differ by rounding anyway. Layers in dropped sub-blocks are not
    compared here, because some formats store them as zeros; only the logits check them. The experts of `model` are
    unpacked in place.
    """
    unpack_experts(model, model.config.model_type)
    loaded, dense = untied_tensors(model), untied_tensors(searched.lm.model)
    for loaded_name, name in checkpoint_format.original_names(searched).items():
        if searched.is_dropped(name):
            continue
        if loaded_name not in loaded:
            raise ValueError(f"{checkpoint_format.name}: the checkpoint has no {loaded_name}")
        expected = _expected(checkpoint_format, searched, name, dense=dense[name], dtype=dtype)
        measured = loaded[loaded_name].to(expected)
        if not torch.equal(measured, expected):
            raise ValueError(
                f"{checkpoint_format.name}: {loaded_name} differs from the searched model: "
                f"{_difference(measured, expected)}"
            )


def _expected(
    checkpoint_format: Format, searched: SearchedModel, name: str, *, dense: Tensor, dtype: torch.dtype
) -> Tensor:
    """The expected tensor, for a checkpoint in `dtype`, in the type in which the model computes.

    `dense` is the uncompressed tensor.
    """
    compute = searched.lm.dtype
    layer = name.removesuffix(".weight")
    if layer in searched.levels:
        return searched.packed(layer).dense(compute if checkpoint_format.packs_levels else dtype).to(compute)
    if not dense.is_floating_point():
        return dense
    return checkpoint_format.as_stored(name, dense, searched=searched, dtype=dtype).to(compute)


def _difference(measured: Tensor, expected: Tensor) -> str:
    if measured.shape != expected.shape:
        return f"its shape is {tuple(measured.shape)} instead of {tuple(expected.shape)}"
    return f"{int((measured != expected).sum())} of its {expected.numel()} numbers differ"

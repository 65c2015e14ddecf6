"""The layout pack-quantized of compressed-tensors: integer codes packed into 32-bit words, with a width per layer.

A compressed layer has these tensors:

* `weight_packed` (rows, ⌈cols·b/32⌉): element i of a row begins at bit i·b
* `weight_scale` (rows, groups)
* `weight_shape`: rows and cols, int64
* with zero points, `weight_zero_point` (⌈rows·b/32⌉, groups): packed along the rows

Codes and zero points are unsigned in the file. The library subtracts 2^(b−1) from both when it reads them.

Source: compressed-tensors 0.18 and later, `compressors/pack_quantized`. Version 0.17 and earlier padded the words.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evopress.export.state import State, read_safetensors
from evopress.weights.base import CompressedWeight, from_tensors
from evopress.weights.integer import QuantizedWeight
from evopress.weights.packing import pack

PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
"""The tensors that replace the weight of a layer. Only layers with zero points have the last one."""

SHAPE_BYTES = 16
"""Bytes of `weight_shape`, which are two 64-bit integers."""


def packed_tensors(weight: QuantizedWeight) -> State:
    """The tensors of one layer, by the part of their name that follows the name of the layer."""
    tensors = {
        "weight_packed": weight.packed,
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor(weight.shape),  # int64
    }
    if weight.zeros is not None:
        tensors["weight_zero_point"] = pack(weight.zeros.t(), weight.bits).t()  # (words, groups)
    return {part: tensor.cpu().contiguous() for part, tensor in tensors.items()}


def parts_of(layer: str, state: Mapping[str, Tensor]) -> State:
    """The tensors of one layer of a checkpoint, by the part of their name that follows the name of the layer."""
    return {part: state[f"{layer}.{part}"] for part in PARTS if f"{layer}.{part}" in state}


def is_same(stored: Mapping[str, Tensor], weight: QuantizedWeight) -> bool:
    """Whether the library unpacks the stored tensors of a layer to the codes, scales and zero points of `weight`."""
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32  # optional package

    offset = 2 ** (weight.bits - 1)
    shape = torch.Size(stored["weight_shape"].tolist())
    codes = unpack_from_int32(stored["weight_packed"], weight.bits, shape).int() + offset
    same = shape == weight.shape and torch.equal(codes, weight.codes().cpu().int())
    same = same and torch.equal(stored["weight_scale"], weight.scales.cpu())
    if weight.zeros is None:
        return same and "weight_zero_point" not in stored
    zeros_shape = torch.Size((shape[0], weight.scales.shape[1]))
    zeros = unpack_from_int32(stored["weight_zero_point"], weight.bits, zeros_shape, packed_dim=0).int() + offset
    return same and torch.equal(zeros, weight.zeros.cpu().int())


def decoded_state(folder: Path, widths: Mapping[str, int]) -> State:
    """All tensors of a checkpoint by the names of the dense model. `widths` has the bits of every packed layer.

    Raises ValueError for a layer whose tensors do not fit together.
    """
    state = read_safetensors(folder)
    for layer, bits in widths.items():
        parts = parts_of(layer, state)
        for part in parts:
            del state[f"{layer}.{part}"]
        state[f"{layer}.weight"] = _weight_of(parts, bits).dense()
    return state


def _weight_of(parts: Mapping[str, Tensor], bits: int) -> CompressedWeight:
    """The weight of a layer from its tensors. Raises ValueError if they do not fit together."""
    rows, cols = parts["weight_shape"].tolist()
    tensors = {"codes": parts["weight_packed"], "scales": parts["weight_scale"]}
    if "weight_zero_point" in parts:
        tensors["zeros"] = parts["weight_zero_point"].t().contiguous()
    weight = from_tensors({"kind": "quantized", "bits": bits, "cols": cols}, tensors)
    if weight.shape != (rows, cols):
        raise ValueError(f"a weight of shape {weight.shape} has the weight_shape {(rows, cols)}")
    return weight


def quantization_config(weights: Mapping[str, QuantizedWeight], *, head: str) -> dict[str, object]:
    """The entry `quantization_config` of config.json. Each group lists the names of all layers with the same grid."""
    groups: dict[tuple[int, bool, int], list[str]] = {}
    for layer, weight in weights.items():
        groups.setdefault((weight.bits, weight.symmetric, weight.group_size), []).append(layer)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [head],
        "config_groups": {
            f"group_{index}": {
                "targets": layers,
                "format": "pack-quantized",
                "weights": _grid_config(bits, symmetric=symmetric, group_size=group_size),
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((bits, symmetric, group_size), layers) in enumerate(sorted(groups.items()))
        },
    }


def _grid_config(bits: int, *, symmetric: bool, group_size: int) -> dict[str, object]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
    }

"""The layers of a checkpoint of compressed-tensors: its configuration, and decoding.

Each kind of weight knows its own layout, see `CompressedWeight.packed_layer`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evopress.export.state import State, read_safetensors
from evopress.weights.base import CompressedWeight, PackedLayer, from_tensors

PARTS = ("weight", "weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_zero_point")
"""The tensors of a layer."""

UNPACKED = "dense"
"""The format of layers that stay as they are."""


def parts_of(layer: str, state: Mapping[str, Tensor]) -> State:
    """The tensors of one layer of a checkpoint, by the part of their name that follows the name of the layer."""
    return {part: state[f"{layer}.{part}"] for part in PARTS if f"{layer}.{part}" in state}


def quantization_config(layers: Mapping[str, PackedLayer], *, head: str) -> dict[str, object]:
    """The entry `quantization_config` of config.json. Each group lists the names of all layers with the same scheme."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault((layer.format, json.dumps(layer.weights, sort_keys=True)), []).append(name)
    unpacked = [name for name, layer in layers.items() if layer.format == UNPACKED]
    packed = sorted((key, names) for key, names in groups.items() if key[0] != UNPACKED)
    formats = {layout for (layout, _), _ in packed}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": [*unpacked, head],
        "config_groups": {
            f"group_{index}": {
                "targets": names,
                "format": layout,
                "weights": {**json.loads(arguments), "dynamic": False, "actorder": None},
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((layout, arguments), names) in enumerate(packed)
        },
    }


def check_decodes(parts: Mapping[str, Tensor], weight: CompressedWeight, *, name: str) -> None:
    """Raise ValueError if the library does not decode the stored tensors of a layer to the numbers of `weight`."""
    layer = weight.packed_layer()
    same = parts.keys() == layer.tensors.keys() and all(
        tensor.dtype == parts[part].dtype and torch.equal(_bytes(tensor), _bytes(parts[part]))
        for part, tensor in layer.tensors.items()
    )
    if not same or not _is_decoded_by_library(layer, parts, weight):
        raise ValueError(f"{name} does not decode to the numbers of the database")


def _is_decoded_by_library(layer: PackedLayer, parts: Mapping[str, Tensor], weight: CompressedWeight) -> bool:
    from compressed_tensors.compressors import BaseCompressor  # optional package
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    if layer.format == UNPACKED:
        return True
    scheme = QuantizationScheme(targets=[], weights=QuantizationArgs(**layer.weights), format=layer.format)
    decoded = BaseCompressor.get_value_from_registry(layer.format).decompress(dict(parts), scheme)["weight"]
    return torch.equal(decoded, weight.dense(decoded.dtype).cpu())


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, because torch cannot compare floats of one byte.

    The clone has plain strides, which those of a single column need not be.
    """
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def decoded_state(folder: Path, widths: Mapping[str, int]) -> State:
    """All tensors of a checkpoint of integer codes by the names of the dense model. `widths` has the bits of layers.

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

"""Packed integer codes in the layout of compressed-tensors, a width per layer, for transformers and vLLM.

Layout: each compressed layer has `weight_packed` (rows, ⌈cols·b/32⌉), element i at bit i·b; `weight_scale`
(rows, groups); `weight_shape`; and, with zero points, `weight_zero_point` (⌈rows·b/32⌉, groups), packed along the rows.
Codes and zero points are unsigned in the file; the library shifts both by 2^(b−1) when it reads them.
`config.json` lists the exact layer names of every width.

Source: compressed-tensors 0.18 and later, `compressors/pack_quantized`; up to 0.17 words were padded.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.compressors.integer_levels import IntegerLevels
from evopress.export.base import (
    FROM_PRETRAINED,
    Format,
    Refused,
    Searched,
    State,
    fill,
    level_bytes,
    need_package,
    read_safetensors,
    refuse_halves,
    stored_config,
    unsearched,
    write_config,
    write_safetensors,
)
from evopress.space.settings import SpaceSettings
from evopress.weights.integer import QuantizedWeight
from evopress.weights.packing import pack, unpack

PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
"""What stands in the file in place of the weight of a layer; the last one only where there are zero points."""

SHAPE_BYTES = 16
"""Of `weight_shape`, two 64-bit integers per layer."""

NO_ZERO_POINTS = (
    "transformers cannot read packed zero points (compressed-tensors 0.20 prepares another shape for them): "
    "set compress.symmetric=true, or export.engine=vllm"
)

VLLM_FUSED = "self_attn.q_proj, k_proj and v_proj run as one layer in vLLM, and so do mlp.gate_proj and up_proj"


class CompressedTensors(Format):
    """Codes, scales and zero points exactly as the database holds them. Embeddings and head stay in 16 bits.

    With `engine` vllm, only what vLLM runs is accepted.
    """

    name: ClassVar[str] = "compressed_tensors"
    packs_levels: ClassVar[bool] = True
    title: ClassVar[str] = "compressed-tensors, pack-quantized, a width per layer"

    def __init__(self, engine: str = "transformers"):
        self.engine = engine
        self.commands = (
            ("vllm serve {folder}",)
            if engine == "vllm"
            else ("pip install 'compressed-tensors>=0.18'", FROM_PRETRAINED)
        )

    def refuse_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        need_package(self, "compressed_tensors", "export")
        refuse_halves(self, space)
        if not isinstance(compressor, IntegerLevels):
            raise Refused(
                f"export.formats=[compressed_tensors] holds integer codes, which compress={_name(compressor)} does not "
                "make: use compress=gptq or rtn, or export.formats=[hf]"
            )
        if self.engine == "transformers" and not compressor.symmetric:
            raise Refused(NO_ZERO_POINTS)
        if self.engine == "vllm" and space.tie != "engine":
            raise Refused(f"export.engine=vllm needs layers that share a level ({VLLM_FUSED}): set space.tie=engine")

    def refuse_dtype(self, compressor: Compressor | Drop, dtype: torch.dtype) -> None:
        if isinstance(compressor, IntegerLevels):
            _refuse_other_scales(getattr(torch, compressor.scale_dtype), dtype)

    def refuse(self, searched: Searched) -> None:
        packed = _quantized(searched, searched.levels)
        odd = [layer for layer in searched.levels if layer not in packed]
        if odd or not searched.levels:
            raise Refused(
                f"export.formats=[compressed_tensors] holds integer codes, which {odd[0] if odd else 'the profile'} "
                "does not have: use compress=gptq or rtn, or export.formats=[hf]"
            )
        _refuse_other_scales(self.dtype(searched), searched.lm.dtype)
        if self.engine == "vllm":
            _refuse_for_vllm(searched)
        elif not all(weight.symmetric for weight in packed.values()):
            raise Refused(NO_ZERO_POINTS)

    def dtype(self, searched: Searched) -> torch.dtype:
        """That of the scales: engines cast them to the type they compute in."""
        first = searched.packed(next(iter(searched.levels)))
        assert isinstance(first, QuantizedWeight)
        scales = first.scales.dtype
        return scales if scales.itemsize == 2 else super().dtype(searched)

    def as_stored(self, searched: Searched, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor if name.removesuffix(".weight") in searched.levels else tensor.to(dtype)

    def predicted_bytes(self, searched: Searched, dtype: torch.dtype) -> int:
        fixed = dtype.itemsize * sum(tensor.numel() for tensor in unsearched(searched).values())
        return level_bytes(searched) + fixed + SHAPE_BYTES * len(searched.levels)

    def predicted_names(self, searched: Searched) -> list[str]:
        parts = PARTS if self.engine == "vllm" else PARTS[:3]
        return [*unsearched(searched), *(f"{layer}.{part}" for layer in searched.levels for part in parts)]

    def write(self, searched: Searched, dtype: torch.dtype, folder: Path) -> None:
        state = searched.dense_state(dtype, leave_out=searched.levels)
        packed = _quantized(searched, searched.levels)
        for layer, weight in packed.items():
            state.update({f"{layer}.{part}": tensor for part, tensor in stored_tensors(weight).items()})
        write_safetensors(searched.renumbered(state), folder)
        config = stored_config(searched, dtype)
        config.quantization_config = quantization_config(searched.renumbered(packed), searched.lm.family.head)
        write_config(config, searched.lm, folder)

    def load(self, folder: Path, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """By transformers where it can read the checkpoint, else (zero points) decoded here."""
        config = AutoConfig.from_pretrained(folder)
        groups = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
        if all(group["weights"]["symmetric"] for group in groups):
            return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        widths = {layer: group["weights"]["num_bits"] for group in groups for layer in group["targets"]}
        fill(model, _decoded(folder, widths))
        return model

    def check_files(self, searched: Searched, dtype: torch.dtype, folder: Path) -> dict[str, object]:
        """Unpack every layer with the library, and compare with the database's codes, scales and zero points."""
        state = read_safetensors(folder)
        for layer, weight in searched.renumbered(_quantized(searched, searched.levels)).items():
            stored = {part: state[f"{layer}.{part}"] for part in PARTS if f"{layer}.{part}" in state}
            if not _same(stored, weight):
                raise ValueError(f"{self.name}: {layer} does not decode to the codes of the database")
        return {"layers_with_equal_codes": len(searched.levels)}


def _decoded(folder: Path, widths: Mapping[str, int]) -> State:
    """All tensors of a checkpoint by the names of the dense model; `widths` has the bits of each packed layer."""
    state = read_safetensors(folder)
    for layer, bits in widths.items():
        parts = {part: state.pop(f"{layer}.{part}") for part in PARTS if f"{layer}.{part}" in state}
        rows, cols = parts["weight_shape"].tolist()
        zeros = None
        if "weight_zero_point" in parts:
            zeros = unpack(parts["weight_zero_point"].t().contiguous(), bits, cols=rows).t().contiguous()
        state[f"{layer}.weight"] = QuantizedWeight(
            parts["weight_packed"], parts["weight_scale"], zeros, bits, cols
        ).dense()
    return state


def _name(compressor: object) -> str:
    return type(compressor).__name__.lower()


def _quantized(searched: Searched, layers: Iterable[str]) -> dict[str, QuantizedWeight]:
    found = {layer: searched.packed(layer) for layer in layers}
    return {layer: weight for layer, weight in found.items() if isinstance(weight, QuantizedWeight)}


def _refuse_other_scales(scales: torch.dtype, compute: torch.dtype) -> None:
    """Raises Refused where engines would round the scales: they cast them to the type they compute in."""
    if compute.itemsize == 2 and scales != compute:
        name = str(compute).removeprefix("torch.")
        raise Refused(
            f"export.formats=[compressed_tensors]: the model computes in {name}, and engines would round the scales, "
            f"{str(scales).removeprefix('torch.')}, to it: set compress.scale_dtype={name}, or model.dtype=float32"
        )


def _refuse_for_vllm(searched: Searched) -> None:
    """Raises Refused where layers that vLLM fuses differ, or where its packing of zero points does not fit."""
    for block in searched.kept_blocks:
        for group in searched.lm.layer_groups:
            names = [searched.lm.layer_name(block, local) for local in group]
            weights = _quantized(searched, names)
            if len({(weight.bits, weight.group_size, weight.symmetric) for weight in weights.values()}) > 1:
                raise Refused(
                    f"export.engine=vllm: {' and '.join(names)} are one layer in vLLM and have different widths in "
                    "this profile: search with space.tie=engine, or set export.engine=transformers"
                )
            for name, weight in weights.items():
                if not weight.symmetric and weight.shape[0] * weight.bits % 32:
                    raise Refused(
                        f"export.engine=vllm: the zero points of {name}, {weight.shape[0]} rows of {weight.bits} bits, "
                        "do not fill 32-bit words: set compress.symmetric=true, or export.engine=transformers"
                    )


def stored_tensors(weight: QuantizedWeight) -> State:
    """The tensors of one layer, by their name after the layer's."""
    tensors = {
        "weight_packed": weight.packed,
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor(weight.shape),  # int64
    }
    if weight.zeros is not None:
        tensors["weight_zero_point"] = pack(weight.zeros.t(), weight.bits).t()  # (words, groups)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _same(stored: Mapping[str, Tensor], weight: QuantizedWeight) -> bool:
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


def quantization_config(weights: Mapping[str, QuantizedWeight], head: str) -> dict[str, object]:
    """The entry of config.json, one group per (bits, symmetric, group size) with the exact names of its layers."""
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
                "targets": targets,
                "format": "pack-quantized",
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "group",
                    "group_size": group_size,
                    "dynamic": False,
                    "actorder": None,
                    "observer": "minmax",
                },
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((bits, symmetric, group_size), targets) in enumerate(sorted(groups.items()))
        },
    }

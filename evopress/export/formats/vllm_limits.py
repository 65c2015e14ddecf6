"""Checks for packed integer codes that vLLM cannot run."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from evopress.export.base import UnsupportedExportError
from evopress.export.searched import SearchedModel
from evopress.space.shapes import LayerShape
from evopress.weights.base import CompressedWeight, PackedLayer

FUSED_LAYERS = "self_attn.q_proj, k_proj and v_proj run as one layer in vLLM, and so do mlp.gate_proj and up_proj"


KERNEL_BITS = (4, 8)
"""Widths of integer codes that vLLM's own kernels run. Others need CUDA and the optional Humming kernels.

Source: `_POSSIBLE_KERNELS` in vLLM 0.32.
"""


def check_widths(all_bits: Iterable[int], *, where: str) -> None:
    """Raise UnsupportedExportError for widths that vLLM's own kernels do not run. `where` says what has them."""
    others = sorted(set(all_bits) - set(KERNEL_BITS))
    if others:
        raise UnsupportedExportError(
            f"export.engine=vllm: vLLM's own kernels run integer codes of 4 and 8 bits, but {where} {others}: set "
            "compress.bits=[4,8]. Other widths run only on CUDA with vLLM's optional Humming kernels: for these, set "
            "export.engine=transformers compress.symmetric=true space.tie=engine"
        )


def check_fused_layers(searched: SearchedModel, layers: Mapping[str, PackedLayer]) -> None:
    """Raise UnsupportedExportError if layers that vLLM runs as one have different formats or global scales."""
    for block in searched.kept_blocks:
        for group in searched.lm.layer_groups(block):
            names = [searched.lm.layer_name(block, local) for local in group]
            fused = [layers[name] for name in names if name in layers]
            if any(_shared(layer) != _shared(fused[0]) for layer in fused):
                raise UnsupportedExportError(
                    f"export.engine=vllm: {' and '.join(names)} are one layer in vLLM but have different widths in "
                    "this profile: search with space.tie=engine, or set export.engine=transformers"
                )


def _shared(layer: PackedLayer) -> tuple[object, ...]:
    """What vLLM takes from the first of the layers that it runs as one."""
    global_scale = layer.tensors.get("weight_global_scale")
    return layer.format, layer.weights, None if global_scale is None else float(global_scale)


def check_zero_points(layer: str, rows: int, *, all_bits: Sequence[int]) -> None:
    """Raise UnsupportedExportError if the zero points of a layer do not fill 32-bit words at one of the widths.

    compressed-tensors 0.20 cannot decode zero points of 4 bits that fill a single word.
    """
    for bits in all_bits:
        if rows * bits % 32 or rows * bits == 32:
            raise UnsupportedExportError(
                f"export.engine=vllm: the zero points of {layer}, {rows} rows of {bits} bits, do not fill two or "
                "more 32-bit words: set compress.symmetric=true, or export.engine=transformers"
            )


def check_blocks(units: Iterable[Sequence[LayerShape]], kinds: Collection[type[CompressedWeight]]) -> None:
    """Raise UnsupportedExportError if a layer is not a whole number of blocks of rows, and vLLM fuses it with others.

    `units` are the layers that vLLM runs as one. The last of them may have any number of rows.
    """
    for layers in units:
        for layer in layers[:-1]:
            for kind in kinds:
                if layer.rows % kind.rows_of_block:
                    raise UnsupportedExportError(
                        f"export.engine=vllm: {layer.name} has {layer.rows} rows, and vLLM runs it as one with others, "
                        f"so its blocks of {kind.rows_of_block} rows must be whole: leave fp8_block out of "
                        "compress.levels, or set export.engine=transformers"
                    )

"""Where the parts of a decoder are, one table for all model families."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch.nn import Linear, Module, ModuleList

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of a decoder-only model.

    `blocks`, `norm` and `head` are paths from the model. The others are paths within a block: `layers` are the linear
    layers in groups that read the same input, in the order in which they run; `attention` and `mlp` are the modules
    whose output is added to the residual stream. A group with `*` in its paths stands for one group per expert.
    """

    layers: Groups
    blocks: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    mlp: str = "mlp"


_LLAMA = Family(
    layers=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
)
_MIXTRAL = replace(
    _LLAMA,
    layers=(*_LLAMA.layers[:2], ("mlp.experts.*.w1", "mlp.experts.*.w3"), ("mlp.experts.*.w2",)),
)
_QWEN_MOE = replace(
    _LLAMA,
    layers=(
        *_LLAMA.layers[:2],
        ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"),
        ("mlp.experts.*.down_proj",),
    ),
)
_PHI3 = Family(layers=(("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)))
_OPT = Family(
    blocks="model.decoder.layers",
    norm="model.decoder.final_layer_norm",
    mlp="fc2",
    layers=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
)

FAMILIES: Mapping[str, Family] = {
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTRAL,
    "opt": _OPT,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _QWEN_MOE,
}
"""By `config.model_type`."""


def family_of(model: Module, model_type: str) -> Family:
    """The family of a model: by its type, else the first one whose parts the model all has.

    Raises ValueError, listing what is known, when there is none.
    """
    candidates = [FAMILIES[model_type]] if model_type in FAMILIES else [_LLAMA, _PHI3, _OPT, _QWEN_MOE]
    for family in (with_experts(candidate, model) for candidate in candidates):
        if not missing_parts(model, family):
            return family
    raise ValueError(
        f"the model's type is {model_type!r}, and its parts are not where one of {', '.join(FAMILIES)} has them: "
        f"set model.family, for example model.family={{blocks: model.layers, layers: [[self_attn.q_proj, "
        f"self_attn.k_proj, self_attn.v_proj], [self_attn.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]], "
        f"norm: model.norm, head: lm_head, attention: self_attn, mlp: mlp}}"
    )


def with_experts(family: Family, model: Module) -> Family:
    """The family with each group that holds `*` repeated for every expert of the model's first block."""
    blocks = submodule(model, family.blocks)
    first = next(blocks.children(), None) if blocks is not None else None
    layers: list[tuple[str, ...]] = []
    for group in family.layers:
        experts = submodule(first, group[0].partition(".*")[0]) if first is not None and "*" in group[0] else None
        numbers = range(len(experts)) if isinstance(experts, ModuleList) else ("*",)
        layers += [tuple(path.replace("*", str(number)) for path in group) for number in numbers]
    return replace(family, layers=tuple(layers))


def expert_of(local: str) -> tuple[str, str, str] | None:
    """Where the experts are, which one it is and the layer's name in it; None for a layer that all tokens pass."""
    found = re.fullmatch(r"(.+)\.(\d+)\.(.+)", local)
    return (found[1], found[2], found[3]) if found else None


def missing_parts(model: Module, family: Family) -> list[str]:
    """Paths of `family` that `model` does not have, or not of the right kind."""
    missing = [path for path in (family.norm, family.head) if submodule(model, path) is None]
    blocks = submodule(model, family.blocks)
    if not isinstance(blocks, ModuleList) or not len(blocks):
        return [family.blocks, *missing]
    for block in blocks:
        missing += [path for group in family.layers for path in group if not isinstance(submodule(block, path), Linear)]
        missing += [path for path in (family.attention, family.mlp) if submodule(block, path) is None]
    return missing


def submodule(module: Module, path: str) -> Module | None:
    """The module at a dotted path, None where there is none."""
    for part in path.split("."):
        found = module._modules.get(part)
        if found is None:
            return None
        module = found
    return module

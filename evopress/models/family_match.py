"""Matches a loaded model with its family, and checks that all parts of the family exist in it."""

import re
from dataclasses import replace

from torch.nn import Linear, Module, ModuleList

from evopress.models.families import FAMILIES, LAYOUTS, Family


def resolve_family(model: Module, model_type: str, family: Family | None = None) -> Family:
    """The given family, or that of the model's type, or the first layout that fits; one group of layers per expert.

    Raises ValueError for a given family with parts that the model does not have, and where no family fits.
    """
    if family is None:
        return detect_family(model, model_type)
    family = expand_experts(family, model)
    if missing := missing_parts(model, family):
        raise ValueError(f"model.family names {missing[0]!r}, which the model does not have")
    return family


def detect_family(model: Module, model_type: str) -> Family:
    """The family of a model's type or, for an unknown type, the first layout whose parts all exist in the model.

    Raises ValueError, listing the known families, when there is none.
    """
    candidates = (FAMILIES[model_type],) if model_type in FAMILIES else LAYOUTS
    for family in (expand_experts(candidate, model) for candidate in candidates):
        if not missing_parts(model, family):
            return family
    raise ValueError(
        f"the model's type is {model_type!r}, and its parts are not where any of {', '.join(FAMILIES)} has them: "
        f"set model.family, for example model.family={{blocks: model.layers, layers: [[self_attn.q_proj, "
        f"self_attn.k_proj, self_attn.v_proj], [self_attn.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]], "
        f"norm: model.norm, head: lm_head, attention: self_attn, mlp: mlp}}"
    )


def expand_experts(family: Family, model: Module) -> Family:
    """The family with each group that contains `*` repeated for every expert of the model's first block."""
    blocks = submodule(model, family.blocks)
    first = next(blocks.children(), None) if blocks is not None else None
    layers: list[tuple[str, ...]] = []
    for group in family.layers:
        experts = submodule(first, group[0].partition(".*")[0]) if first is not None and "*" in group[0] else None
        indices = range(len(experts)) if isinstance(experts, ModuleList) else ("*",)
        layers += [tuple(path.replace("*", str(index)) for path in group) for index in indices]
    return replace(family, layers=tuple(layers))


def expert_of(local: str) -> tuple[str, str, str] | None:
    """Splits the local name of an expert's layer into the path of all experts, the expert's index and the rest.

    None for a layer that is not part of an expert.
    """
    match = re.fullmatch(r"(.+)\.(\d+)\.(.+)", local)
    return (match[1], match[2], match[3]) if match else None


def missing_parts(model: Module, family: Family) -> list[str]:
    """Paths of `family` that do not exist in `model`, or lead to a module of the wrong kind."""
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
        child = module._modules.get(part)
        if child is None:
            return None
        module = child
    return module

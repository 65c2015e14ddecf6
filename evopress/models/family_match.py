"""Matches a model with its family, which must exist in the model and name every weight matrix of the blocks."""

import re
from collections.abc import Container
from dataclasses import replace

from torch.nn import Linear, Module, ModuleList

from evopress.models.families import FAMILIES, LAYOUTS, Family

NUM_SHOWN = 4
"""How many names an error lists."""


def resolve_family(model: Module, model_type: str, family: Family | None = None) -> Family:
    """The given family, or the family of the model's type, or the first layout that fits.

    The result has one group of layers per expert. Raises ValueError if the given family, or every known one, does not
    fit the model.
    """
    if family is None:
        return detect_family(model, model_type)
    family = expand_experts(family, model)
    if missing := missing_parts(model, family):
        raise ValueError(f"model.family names {missing[0]!r}, which the model does not have")
    _check_blocks_are_alike(model, family, model_type)
    if both := [path for group in family.layers for path in group if _is_within(path, family.kept)]:
        raise ValueError(f"model.family names {both[0]!r} in layers and in kept: remove it from one of them")
    if unnamed := unnamed_weights(model, family):
        raise ValueError(
            f"model.family leaves out {_share(model, family, unnamed)}: add them to model.family.layers to compress "
            f"them, or to model.family.kept, with the reason, to leave them as they are"
        )
    return family


def detect_family(model: Module, model_type: str) -> Family:
    """The family of a model's type or, if it is unknown or does not fit, the first layout that fits the model.

    Raises ValueError if there is none. The error says how the closest one differs.
    """
    known = (FAMILIES[model_type],) if model_type in FAMILIES else ()
    candidates = [expand_experts(family, model) for family in (*known, *LAYOUTS)]
    for family in candidates:
        if not missing_parts(model, family) and not unnamed_weights(model, family):
            _check_blocks_are_alike(model, family, model_type)
            return family
    closest = candidates[0] if known else min(candidates, key=lambda family: _distance(model, family))
    _check_blocks_are_alike(model, closest, model_type)
    missing = missing_parts(model, closest)
    difference = (
        f"the closest one expects {_listed(missing)}, which the model does not have"
        if missing
        else f"the closest one leaves out {_share(model, closest, unnamed_weights(model, closest))}"
    )
    raise ValueError(
        f"the model's type is {model_type!r}, and none of the known families ({', '.join(FAMILIES)}) fits it: "
        f"{difference}. Set model.family to the paths of its parts, for example model.family={{blocks: model.layers, "
        f"layers: [[self_attn.q_proj, self_attn.k_proj, self_attn.v_proj], [self_attn.o_proj], [mlp.gate_proj, "
        f"mlp.up_proj], [mlp.down_proj]], kept: {{mlp.router: small}}, norm: model.norm, head: lm_head, "
        f"attention: self_attn, mlp: mlp}}"
    )


def _distance(model: Module, family: Family) -> tuple[bool, int]:
    """A distance, which is larger for a family that fits the model less well."""
    missing = missing_parts(model, family)
    return family.blocks in missing, len(missing)


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
    """Split the local name of an expert's layer into the path of all experts, the expert's index and the rest.

    None for a layer that is not part of an expert.
    """
    match = re.fullmatch(r"(.+)\.(\d+)\.(.+)", local)
    return (match[1], match[2], match[3]) if match else None


def missing_parts(model: Module, family: Family) -> list[str]:
    """Paths of `family` that do not exist in `model`, or that lead to a module of the wrong kind; each path once."""
    missing = [path for path in (family.norm, family.head) if submodule(model, path) is None]
    blocks = submodule(model, family.blocks)
    if not isinstance(blocks, ModuleList) or not len(blocks):
        return [family.blocks, *missing]
    for block in blocks:
        missing += [path for group in family.layers for path in group if not isinstance(submodule(block, path), Linear)]
        missing += [path for path in (family.attention, family.mlp, *family.kept) if submodule(block, path) is None]
    return list(dict.fromkeys(missing))


def unnamed_weights(model: Module, family: Family) -> dict[str, int]:
    """Sizes, by local name, of the weights of the first block that are neither in `layers` nor in `kept`.

    Vectors are not included. The blocks of `family` must exist in `model`.
    """
    named = {path for group in family.layers for path in group} | family.kept.keys()
    sizes = _matrix_sizes(_blocks(model, family)[0])
    return {name: size for name, size in sizes.items() if not _is_within(name, named)}


def submodule(module: Module, path: str) -> Module | None:
    """The module at a dotted path; None if there is none."""
    for part in path.split("."):
        child = module._modules.get(part)
        if child is None:
            return None
        module = child
    return module


def _blocks(model: Module, family: Family) -> list[Module]:
    return list(model.get_submodule(family.blocks).children())


def _matrix_sizes(block: Module) -> dict[str, int]:
    """Sizes, by local name, of the weights of a block that have at least two dimensions."""
    return {name: parameter.numel() for name, parameter in block.named_parameters() if parameter.ndim > 1}


def _is_within(name: str, paths: Container[str]) -> bool:
    """Whether a name is one of `paths` or below one of them."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in paths for length in range(1, len(parts) + 1))


def _check_blocks_are_alike(model: Module, family: Family, model_type: str) -> None:
    """Raise ValueError if the blocks do not all have the same layers. Accepts a model without blocks."""
    blocks = submodule(model, family.blocks)
    all_names = [set(_matrix_sizes(block)) for block in blocks.children()] if isinstance(blocks, ModuleList) else []
    for index, names in enumerate(all_names):
        if names != all_names[0]:
            raise ValueError(
                f"blocks 0 and {index} of the model, of type {model_type!r}, have different layers "
                f"({_listed(sorted(all_names[0] - names))} only in block 0, {_listed(sorted(names - all_names[0]))} "
                f"only in block {index}): models whose blocks differ are not supported, choose another with model.path"
            )


def _share(model: Module, family: Family, unnamed: dict[str, int]) -> str:
    """The unnamed weights and their share of a block's weights, in words."""
    total = sum(parameter.numel() for parameter in _blocks(model, family)[0].parameters())
    names = _listed([name.removesuffix(".weight") for name in sorted(unnamed, key=lambda name: -unnamed[name])])
    return f"{names} ({sum(unnamed.values()) / total:.1%} of the weights of a block)"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return (", ".join(names[:NUM_SHOWN]) or "nothing") + more

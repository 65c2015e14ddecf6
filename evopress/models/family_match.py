"""Matches a model with its family, which must exist in the model and name every weight matrix of every block."""

import re
from collections.abc import Container
from dataclasses import replace

from torch.nn import Module, ModuleList

from evopress.models.block_layers import first_path, groups_of, submodule
from evopress.models.families import FAMILIES, LAYOUTS, Family

NUM_SHOWN = 4
"""How many names an error lists."""


def resolve_family(model: Module, model_type: str, family: Family | None = None) -> Family:
    """The given family, or the family of the model's type, or the first layout that fits.

    The result has one group of layers per expert, and only paths that some block has. Raises ValueError if the given
    family does not fit the model, or if none is given and no known one fits.
    """
    if family is None:
        return detect_family(model, model_type)
    family = expand_experts(family, model)
    if missing := missing_parts(model, family):
        raise ValueError(f"model.family names {missing[0]!r}, which the model does not have")
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
    candidates = [_existing_part(expand_experts(family, model), model) for family in (*known, *LAYOUTS)]
    for family in candidates:
        if not missing_parts(model, family) and not unnamed_weights(model, family):
            return family
    closest = candidates[0] if known else min(candidates, key=lambda family: _distance(model, family))
    _check_experts_are_unpacked(model, closest, model_type)
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


def _distance(model: Module, family: Family) -> tuple[bool, int, int]:
    """A distance, which is larger for a family that fits the model less well."""
    missing = missing_parts(model, family)
    unnamed = {} if family.blocks in missing else unnamed_weights(model, family)
    return family.blocks in missing, len(missing), sum(unnamed.values())


def expand_experts(family: Family, model: Module) -> Family:
    """The family with each group that contains `*` repeated for every expert of the block that has most experts."""
    layers: list[tuple[str, ...]] = []
    for group in family.layers:
        path, is_expert, _ = group[0].partition(".*")
        experts = [submodule(block, path) for block in _blocks(model, family)] if is_expert else []
        num_experts = max((len(part) for part in experts if isinstance(part, ModuleList)), default=0)
        indices = [str(index) for index in range(num_experts)] or ["*"]
        layers += [tuple(path.replace("*", index) for path in group) for index in indices]
    return replace(family, layers=tuple(layers))


def _existing_part(family: Family, model: Module) -> Family:
    """The family without layers and kept parts that no block has."""
    blocks = _blocks(model, family)
    existing = {path for block in blocks for group in groups_of(family, block) for path in group}
    groups = (tuple(path for path in group if path in existing) for group in family.layers)
    kept = {path: why for path, why in family.kept.items() if _is_in_some(blocks, path)}
    return replace(family, layers=tuple(group for group in groups if group), kept=kept)


def expert_of(local: str) -> tuple[str, str, str] | None:
    """Split the local name of an expert's layer into the path of all experts, the expert's index and the rest.

    None for a layer that is not part of an expert.
    """
    match = re.fullmatch(r"(.+)\.(\d+)\.(.+)", local)
    return (match[1], match[2], match[3]) if match else None


def missing_parts(model: Module, family: Family) -> list[str]:
    """Paths of `family` that do not exist in `model`, or that lead to a module of the wrong kind; each path once.

    The blocks, the norm and the head must exist, the attention and the MLP in every block, and all other parts in some
    block.
    """
    missing = [path for path in (family.norm, family.head) if submodule(model, path) is None]
    blocks = _blocks(model, family)
    if not blocks:
        return [family.blocks, *missing]
    existing = {path for block in blocks for group in groups_of(family, block) for path in group}
    missing += [path for group in family.layers for path in group if path not in existing]
    for paths in (family.attention, family.mlp):
        if not all(first_path(block, paths) for block in blocks):
            missing.append(paths if isinstance(paths, str) else " or ".join(paths))
    missing += [path for path in family.kept if not _is_in_some(blocks, path)]
    return list(dict.fromkeys(missing))


def unnamed_weights(model: Module, family: Family) -> dict[str, int]:
    """Sizes, by local name, of the weights that are neither in `layers` nor in `kept`, in the first block with any.

    Vectors are not included.
    """
    unnamed = (_unnamed_in_block(block, family) for block in _blocks(model, family))
    return next(filter(None, unnamed), {})


def _unnamed_in_block(block: Module, family: Family) -> dict[str, int]:
    named = {path for group in groups_of(family, block) for path in group} | family.kept.keys()
    return {name: size for name, size in _matrix_sizes(block).items() if not _is_within(name, named)}


def _is_in_some(blocks: list[Module], path: str) -> bool:
    return any(submodule(block, path) is not None for block in blocks)


def _blocks(model: Module, family: Family) -> list[Module]:
    """The blocks of the model; empty if the path of the family leads to none."""
    blocks = submodule(model, family.blocks)
    return list(blocks) if isinstance(blocks, ModuleList) else []


def _matrix_sizes(block: Module) -> dict[str, int]:
    """Sizes, by local name, of the weights of a block that have at least two dimensions."""
    return {name: parameter.numel() for name, parameter in block.named_parameters() if parameter.ndim > 1}


def _is_within(name: str, paths: Container[str]) -> bool:
    """Whether a name is one of `paths` or below one of them."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in paths for length in range(1, len(parts) + 1))


def _check_experts_are_unpacked(model: Module, family: Family, model_type: str) -> None:
    """Raise ValueError if the closest family leaves out matrices of experts that are still one tensor."""
    packed = [
        name
        for block in _blocks(model, family)
        for name, weight in block.named_parameters()
        if weight.ndim > 2 and ("expert" in name or "moe" in name)
    ]
    if packed:
        raise ValueError(
            f"the model's type is {model_type!r}, and {packed[0]} holds the matrices of all experts of a block in a "
            f"way that evopress cannot split into one matrix per expert: choose another model with model.path"
        )


def _share(model: Module, family: Family, unnamed: dict[str, int]) -> str:
    """The unnamed weights and their share of the weights of their block, in words."""
    block = next(block for block in _blocks(model, family) if _unnamed_in_block(block, family) == unnamed)
    total = sum(parameter.numel() for parameter in block.parameters())
    names = _listed([name.removesuffix(".weight") for name in sorted(unnamed, key=lambda name: -unnamed[name])])
    return f"{names} ({sum(unnamed.values()) / total:.1%} of the weights of a block)"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return (", ".join(names[:NUM_SHOWN]) or "nothing") + more

"""Finds the parts of a family in one block. Blocks may differ, so a block may have only some of the paths."""

from torch.nn import Linear, Module

from evopress.models.families import Family, Groups, Paths


def submodule(module: Module, path: str) -> Module | None:
    """The module at a dotted path; None if there is none."""
    for part in path.split("."):
        child = module._modules.get(part)
        if child is None:
            return None
        module = child
    return module


def groups_of(family: Family, block: Module) -> Groups:
    """The groups of `family.layers`, with only those layers that the block has."""
    groups = (tuple(path for path in group if isinstance(submodule(block, path), Linear)) for group in family.layers)
    return tuple(group for group in groups if group)


def first_path(block: Module, paths: Paths) -> str | None:
    """The first of the paths that the block has; None if it has none."""
    alternatives = (paths,) if isinstance(paths, str) else paths
    return next((path for path in alternatives if submodule(block, path) is not None), None)

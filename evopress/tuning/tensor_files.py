"""Safetensors files with facts in their metadata. A file is complete or absent, and is read only by its identity."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from evopress.runtime.files import write_atomically

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write a file, in place of an older one. `facts` must be JSON values and contain an `identity`.

    All facts are in one key of the metadata. With several keys, their order in the file could differ from run to run.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {**facts, "sha256": _sha256(on_cpu)}
    write_atomically(path, to_safetensors(on_cpu, metadata={"tuning": json.dumps(facts, sort_keys=True)}))


def read_tensors(path: Path, identity: Mapping[str, object]) -> tuple[Tensors, dict[str, Any]] | None:
    """The tensors and the facts of a file; None if the file is missing, damaged, or has another identity."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["tuning"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        is_intact = facts["sha256"] == _sha256(tensors)
    except Exception as error:  # safetensors raises exceptions of several unrelated classes
        log.warning("%s is damaged (%s) and will be recreated", path, error)
        return None
    if not is_intact:
        log.warning("%s is damaged and will be recreated", path)
    return (tensors, facts) if is_intact and facts["identity"] == identity else None


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

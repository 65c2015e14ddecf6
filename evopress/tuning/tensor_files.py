"""Files of tuning: safetensors with facts about them, complete or absent, used only for what they were made for."""

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
    """Replace a file. `facts` are JSON, with an `identity`.

    All are in one key of the metadata, because the order of several would not always be the same.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {**facts, "sha256": _sha256(on_cpu)}
    write_atomically(path, to_safetensors(on_cpu, metadata={"tuning": json.dumps(facts, sort_keys=True)}))


def read_tensors(path: Path, identity: Mapping[str, object]) -> tuple[Tensors, dict[str, Any]] | None:
    """The tensors and the facts of a file; None if there is none, or one of another identity or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["tuning"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        is_intact = facts["sha256"] == _sha256(tensors)
    except Exception as error:  # the exceptions of safetensors have no common class but this
        log.warning("%s is damaged (%s) and will be recreated", path, error)
        return None
    if not is_intact:
        log.warning("%s is damaged and will be recreated", path)
    return (tensors, facts) if is_intact and facts["identity"] == identity else None


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""The tensors of a model by name, in memory and in safetensors files."""

from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

State = dict[str, Tensor]
"""Tensors by name."""

SAFETENSORS_ENTRY_BYTES = 72
"""Bytes of a tensor's entry in the header of a file, without its name: type, shape and offsets as JSON."""


def untied_tensors(model: PreTrainedModel) -> State:
    """Parameters and persistent buffers. Tied ones appear once, under their first name."""
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in names}


def cast_for_file(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor on the CPU, contiguous; a floating-point one in `dtype`."""
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()


def write_safetensors(state: State, folder: Path) -> None:
    """Write `model.safetensors`, or numbered parts with an index if it is large."""
    save_torch_state_dict(state, folder, max_shard_size="5GB", metadata={"format": "pt"})


def read_safetensors(folder: Path) -> State:
    """All tensors of a folder, memory-mapped."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def load_state(model: PreTrainedModel, state: State, *, absent: tuple[str, ...] = ()) -> None:
    """Copy tensors into a model by name, cast to the types of the model.

    Args:
        absent: prefixes of names that may be missing in `state`.

    Raises:
        ValueError: A name is unknown or missing.
    """
    missing = [name for name in untied_tensors(model).keys() - state.keys() if not name.startswith(absent)]
    unknown = state.keys() - model.state_dict().keys()
    if missing or unknown:
        raise ValueError(
            f"the checkpoint does not fit its configuration: missing {missing[:3]}, unknown {sorted(unknown)[:3]}"
        )
    model.load_state_dict(state, strict=False)
    model.tie_weights()

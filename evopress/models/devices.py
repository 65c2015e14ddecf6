"""The devices that evopress can compute on: the CPU, and GPUs that torch calls cuda."""

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)

SUPPORTED = ("cpu", "cuda")
"""Types of devices. Any other type may lack an operation, which would end a run, perhaps after hours."""


def check_device(name: str, setting: str = "model.device") -> None:
    """Raise ValueError for a device that torch does not know, or that evopress has never been tested on."""
    try:
        device_type = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"{setting} is {name!r}: use auto, cpu, cuda or cuda:0") from error
    if device_type not in SUPPORTED:
        raise ValueError(
            f"{setting} is {name!r}, but evopress computes only on cpu and cuda, and has never been tested on "
            f"{device_type}: use auto, cpu, cuda or cuda:0"
        )


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU if there is one. Raises ValueError for a GPU that does not exist.

    Builds of torch for ROCm call an AMD GPU cuda as well. It gets a warning: torch has the same operations there, so it
    is likely to work, but nobody has tested it.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if num_gpus else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not num_gpus:
        raise ValueError(f"model.device is {name!r} but there is no usable GPU: set model.device=cpu")
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ValueError(f"model.device is {name!r} but the last GPU is cuda:{num_gpus - 1}: set model.device to that")
    if device.type == "cuda" and torch.version.hip is not None:
        _warn_of_rocm(torch.version.hip)
    return device


@cache
def _warn_of_rocm(version: str) -> None:
    log.warning(
        "this build of torch is for AMD GPUs (ROCm, HIP %s), on which evopress has never been tested: before you rely "
        "on results, compare the dense perplexity with that of a run with model.device=cpu",
        version,
    )

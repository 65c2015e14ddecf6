"""Which devices can compute: the CPU, and GPUs that torch calls cuda."""

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)

SUPPORTED = ("cpu", "cuda")
"""Types of devices. On any other, the first operation that it lacks would end a run, perhaps after hours."""


def check_device(name: str, setting: str = "model.device") -> None:
    """Raises ValueError for a device that torch does not know, or that evopress has never run on."""
    try:
        device_type = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"{setting} is {name!r}: use auto, cpu, cuda or cuda:0") from error
    if device_type not in SUPPORTED:
        raise ValueError(
            f"{setting} is {name!r}, but evopress computes on cpu and cuda only and was never tried on {device_type}: "
            "use auto, cpu, cuda or cuda:0"
        )


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one. Raises ValueError for a GPU that does not exist.

    A GPU of AMD is called cuda too, by a build of torch for ROCm. It gets a warning: torch has the same operations
    there, so it is likely to work, but nobody has tried.
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
        "this build of torch is for AMD GPUs (ROCm, HIP %s), which evopress was never tried on: compare the dense "
        "perplexity with that of a run with model.device=cpu before you rely on results",
        version,
    )

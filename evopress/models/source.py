"""The settings of a model: where it comes from, its type in memory, and its device."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from evopress.models.devices import check_device, find_device
from evopress.models.families import Family
from evopress.runtime.config_class import UserPath, config_class

FamilySettings = config_class(Family)


@config_class
class ModelSource:
    """Which model to load, in which type and on which device.

    Attributes:
        name: Names the folders of the model's databases and runs.
        path: A hub id, a local folder or a .gguf file; with `package`, a path relative to that package's folder.
        package: An installed Python package that contains the model.
        tokenizer: A hub id or local folder with the model's tokenizer; None: it is with the model.
        revision: A commit, branch or tag on the hub. Does not apply to `tokenizer`.
        gguf_file: A GGUF file inside the hub repository or the folder.
        dtype: `auto` is bfloat16 if the device supports it natively, otherwise float32.
        device: `auto` is the GPU if there is one.
        attention: An attention implementation of transformers; `auto` is what transformers prefers for the model.
        offload: Keep the blocks in the machine's memory, mapped from their files, and copy them to the device one by
            one.
        trust_remote_code: Run Python code that comes with the model.
        family: The paths of the model's parts, if it belongs to none of the known families.
        max_perplexity: A dense model with this perplexity or more is refused. None is the perplexity of a uniform
            guess over the vocabulary.
    """

    name: str
    path: UserPath
    package: str | None = None
    tokenizer: UserPath | None = None
    revision: str | None = None
    gguf_file: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    attention: str = "auto"
    offload: bool = False
    trust_remote_code: bool = False
    family: FamilySettings | None = None  # type: ignore[valid-type]
    max_perplexity: float | None = Field(default=None, gt=0)

    def __post_init__(self) -> None:
        if not self.name or self.name == ".." or Path(self.name).name != self.name:
            raise ValueError(f"model.name is {self.name!r}: it names a folder, so use letters, digits and dashes")
        if self.device != "auto":
            check_device(self.device)


def device_of(source: ModelSource) -> torch.device:
    """The device that computes. Raises ValueError for a GPU that does not exist."""
    return find_device(source.device)


def dtype_of(source: ModelSource, device: torch.device) -> torch.dtype:
    """The type of the weights in memory."""
    if source.dtype != "auto":
        return getattr(torch, source.dtype)
    is_native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_native else torch.float32

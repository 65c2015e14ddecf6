"""The settings of the configuration group `export`."""

import re
from dataclasses import field, replace
from typing import Literal, Self

import torch

from evopress.runtime.config_class import config_class
from evopress.weights.block_grids import TypeName


@config_class
class Export:
    """Which checkpoints to write. Each one gets a folder with the name of its format.

    Args:
        formats: names of registered formats. A format from another package is given by the import path of its class,
            such as `my_package.my_format.MyFormat`.
        dtype: type of the tensors that are not packed. `auto` is a 16-bit type: the type of the model, or for a float32
            model the type that represents the scales exactly.
        engine: the engine that will run compressed_tensors.
        pre_tokenizer: for gguf, llama.cpp's name of the rule that splits text into words. None: recognised from the
            tokenizer.
        embeddings: for gguf, the block type to which embeddings and head are rounded after the search. None: they are
            stored in `dtype`.
        push_to_hub: `ORG/NAME` of a repository on the Hugging Face hub, to which the checkpoint is uploaded. With
            several formats, each has its own repository `ORG/NAME-format`. None: nothing is uploaded.
        private: whether a repository that is created for an upload is visible only to its owners.
    """

    formats: list[str] = field(default_factory=list)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    engine: Literal["transformers", "vllm"] = "transformers"
    pre_tokenizer: str | None = None
    embeddings: TypeName | None = None
    push_to_hub: str | None = None
    private: bool = True

    def __post_init__(self) -> None:
        if self.push_to_hub is not None and not re.fullmatch(r"[^/\s]+/[^/\s]+", self.push_to_hub):
            raise ValueError(
                f"export.push_to_hub is {self.push_to_hub!r}: give the user or organisation and a name, as in ORG/NAME"
            )

    def of_target(self, target: str) -> Self:
        """The settings for one of several targets of a run, whose repositories are named after it."""
        return replace(self, push_to_hub=f"{self.push_to_hub}-{target}") if self.push_to_hub else self

    def dtype_or(self, default: torch.dtype) -> torch.dtype:
        """The chosen type, or `default` for `auto`."""
        chosen = default if self.dtype == "auto" else getattr(torch, self.dtype)
        assert isinstance(chosen, torch.dtype)
        return chosen

"""Compares the file sizes of a checkpoint with the predicted sizes."""

import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from evopress.export.base import Format
from evopress.export.searched import SearchedModel

TOLERANCE = 0.005
"""Accepted relative difference, both for whole files and for the tensors alone."""

HEADER_SLACK = 2048
"""Bytes by which a header may differ from its estimate. They matter for tiny models only."""


@dataclass(frozen=True)
class FileSizes:
    """Bytes of all weight files of a checkpoint, bytes of their headers, and the predicted bytes of the files."""

    written: int
    headers: int
    predicted: int


def check_file_sizes(
    checkpoint_format: Format, searched: SearchedModel, *, folder: Path, dtype: torch.dtype
) -> FileSizes:
    """Raise ValueError if files or tensors are larger or smaller than predicted."""
    tensors = checkpoint_format.predicted_bytes(searched, dtype)
    predicted = tensors + checkpoint_format.predicted_header_bytes(searched)
    written, headers = file_bytes(folder)
    name = checkpoint_format.name
    if abs(written - headers - tensors) > TOLERANCE * tensors:
        raise ValueError(f"{name}: the tensors take {written - headers} bytes, but {tensors} were predicted")
    if abs(written - predicted) > TOLERANCE * predicted + HEADER_SLACK:
        raise ValueError(f"{name}: the files take {written} bytes, but {predicted} were predicted")
    return FileSizes(written, headers, predicted)


def file_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of all weight files in a folder, and bytes of their headers."""
    written = headers = 0
    for path in sorted(folder.glob("*.safetensors")):
        written += path.stat().st_size
        with open(path, "rb") as file:
            headers += 8 + struct.unpack("<Q", file.read(8))[0]
    for path in sorted(folder.glob("*.gguf")):
        from gguf import GGUFReader  # optional package

        written += path.stat().st_size
        headers += path.stat().st_size - sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    return written, headers

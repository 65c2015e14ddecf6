"""A written checkpoint against the searched model: bytes, stored numbers, logits."""

import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from evopress.export.base import Format, Searched, own_tensors
from evopress.export.logits import LogitComparison, compare_logits
from evopress.export.stored_tensors import check_tensors
from evopress.export.tolerance import logit_tolerance
from evopress.models.language_model import LanguageModel
from evopress.space.build import dense_bytes

SIZE_TOLERANCE = 0.005
"""Share by which the written file may differ from the prediction, and so may the tensors alone."""

HEADER_SLACK = 2048
"""Bytes by which a header may differ from its estimate, which matters for toy models only."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found. Bytes are those of the weight files, headers and all; logits are compared with the search's.

    `share_of_dense` is the written files' share of the `dense_bytes` of the uncompressed model at 16 bits.
    """

    predicted_bytes: int
    written_bytes: int
    dense_bytes: int
    share_of_dense: float
    header_bytes: int
    max_logit_difference: float
    max_logit: float
    kl: float
    same_top_token: float
    compute_dtype: str
    files: dict[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def verify(
    form: Format, searched: Searched, dtype: torch.dtype, folder: Path, tokens: Int[Tensor, "windows time"]
) -> Verification:
    """Compare a checkpoint in `folder` with the searched model. Raises ValueError where they differ."""
    tensors = form.predicted_bytes(searched, dtype)
    predicted = tensors + form.predicted_header_bytes(searched)
    written, headers = file_bytes(folder)
    if abs(written - headers - tensors) > SIZE_TOLERANCE * tensors:
        raise ValueError(f"{form.name}: the tensors take {written - headers} bytes, but {tensors} were predicted")
    if abs(written - predicted) > SIZE_TOLERANCE * predicted + HEADER_SLACK:
        raise ValueError(f"{form.name}: the files take {written} bytes, but {predicted} were predicted")
    files = form.check_files(searched, dtype, folder)
    expected = searched_logits(form, searched, dtype, tokens)
    comparison = compare_logits(expected, _checkpoint_logits(form, searched, dtype, folder, tokens))
    _check_logits(form, searched.lm, comparison)
    return Verification(
        predicted_bytes=predicted,
        written_bytes=written,
        dense_bytes=dense_bytes(searched.lm),
        share_of_dense=round(written / dense_bytes(searched.lm), 4),
        header_bytes=headers,
        max_logit_difference=comparison.max_difference,
        max_logit=comparison.scale.largest,
        kl=comparison.kl,
        same_top_token=comparison.same_top_token,
        compute_dtype=str(searched.lm.dtype).removeprefix("torch."),
        files=files,
    )


def _check_logits(form: Format, lm: LanguageModel, comparison: LogitComparison) -> None:
    allowed = logit_tolerance(lm, comparison.scale)
    if not comparison.max_difference <= allowed.difference or not comparison.kl <= allowed.kl:
        raise ValueError(
            f"{form.name}: the checkpoint's logits differ from the searched model's by up to "
            f"{comparison.max_difference:.3g} (allowed {allowed.difference:.3g}), KL {comparison.kl:.3g} "
            f"(allowed {allowed.kl:.3g})"
        )


@torch.no_grad()
def searched_logits(
    form: Format, searched: Searched, dtype: torch.dtype, tokens: Int[Tensor, "windows time"]
) -> Float[Tensor, "windows time vocabulary"]:
    """Logits of the searched model, with what the format rounds rounded in the same way; float32 on the CPU."""
    with searched.applied() as model:
        stored = {
            name: form.as_stored(searched, searched.untied_name(name), tensor, dtype).to(searched.lm.dtype)
            for name, tensor in own_tensors(model).items()
            if tensor.is_floating_point()
        }
        return torch.cat(
            [
                functional_call(model, stored, (), {"input_ids": part, "use_cache": False}).logits.float().cpu()
                for part in tokens.to(searched.lm.device).split(1)
            ]
        )


@torch.no_grad()
def _checkpoint_logits(
    form: Format, searched: Searched, dtype: torch.dtype, folder: Path, tokens: Int[Tensor, "windows time"]
) -> Float[Tensor, "windows time vocabulary"]:
    """Logits of the checkpoint, float32 on the CPU. Raises ValueError where its tensors are not the searched ones."""
    lm = searched.lm
    model = form.load(folder, lm.dtype, lm.model.config._attn_implementation)
    model.to(lm.device).eval()  # type: ignore[arg-type]
    parts = [model(input_ids=part, use_cache=False).logits.float().cpu() for part in tokens.to(lm.device).split(1)]
    check_tensors(form, searched, dtype, model)  # after the first run: until then some engines hold packed weights
    return torch.cat(parts)


def file_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of all weight files in `folder`, and those of their headers."""
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

"""Compares a written checkpoint with the searched model."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from evopress.export.base import Format
from evopress.export.searched import SearchedModel
from evopress.export.state import untied_tensors
from evopress.export.verification.file_sizes import check_file_sizes
from evopress.export.verification.logits import LogitComparison, compare_logits
from evopress.export.verification.tensors import check_tensors
from evopress.export.verification.tolerance import logit_tolerance
from evopress.models.language_model import LanguageModel
from evopress.space.build import dense_bytes


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of comparing a checkpoint with the searched model.

    Bytes are those of the weight files, including headers. `dense_bytes` is the size of the uncompressed model at 16
    bits, and `share_of_dense` is the written size relative to it. `kl` is per token, in nats. `files` is the result of
    the format's own comparison.
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


def verify_checkpoint(
    checkpoint_format: Format,
    searched: SearchedModel,
    *,
    folder: Path,
    dtype: torch.dtype,
    tokens: Int[Tensor, "windows time"],
) -> Verification:
    """Compare file sizes, tensors and logits of a checkpoint with those of the searched model.

    Args:
        dtype: the type of the tensors that are not packed.
        tokens: text for the logits.

    Raises:
        ValueError: They differ by more than rounding.
    """
    sizes = check_file_sizes(checkpoint_format, searched, folder=folder, dtype=dtype)
    files = checkpoint_format.check_files(searched, folder, dtype=dtype)
    expected = searched_logits(checkpoint_format, searched, dtype=dtype, tokens=tokens)
    measured = _checkpoint_logits(checkpoint_format, searched, folder=folder, dtype=dtype, tokens=tokens)
    comparison = compare_logits(expected, measured)
    _check_logits(checkpoint_format, searched.lm, comparison)
    uncompressed = dense_bytes(searched.lm)
    return Verification(
        predicted_bytes=sizes.predicted,
        written_bytes=sizes.written,
        dense_bytes=uncompressed,
        share_of_dense=round(sizes.written / uncompressed, 4),
        header_bytes=sizes.headers,
        max_logit_difference=comparison.max_difference,
        max_logit=comparison.scale.largest,
        kl=comparison.kl,
        same_top_token=comparison.same_top_token,
        compute_dtype=str(searched.lm.dtype).removeprefix("torch."),
        files=files,
    )


def _check_logits(checkpoint_format: Format, lm: LanguageModel, comparison: LogitComparison) -> None:
    allowed = logit_tolerance(lm, comparison.scale)
    if not comparison.max_difference <= allowed.difference or not comparison.kl <= allowed.kl:
        raise ValueError(
            f"{checkpoint_format.name}: the checkpoint's logits differ from the searched model's by up to "
            f"{comparison.max_difference:.3g} (allowed {allowed.difference:.3g}), KL {comparison.kl:.3g} "
            f"(allowed {allowed.kl:.3g})"
        )


@torch.no_grad()
def searched_logits(
    checkpoint_format: Format, searched: SearchedModel, *, dtype: torch.dtype, tokens: Int[Tensor, "windows time"]
) -> Float[Tensor, "windows time vocabulary"]:
    """Logits of the searched model, with its tensors rounded as the format rounds them; float32 on the CPU."""
    with searched.applied() as model:
        stored = {
            name: checkpoint_format.as_stored(searched.untied_name(name), tensor, searched=searched, dtype=dtype)
            for name, tensor in untied_tensors(model).items()
            if tensor.is_floating_point()
        }
        stored = {name: tensor.to(searched.lm.dtype) for name, tensor in stored.items()}
        return torch.cat(
            [
                functional_call(model, stored, (), {"input_ids": window, "use_cache": False}).logits.float().cpu()
                for window in tokens.to(searched.lm.device).split(1)
            ]
        )


@torch.no_grad()
def _checkpoint_logits(
    checkpoint_format: Format,
    searched: SearchedModel,
    *,
    folder: Path,
    dtype: torch.dtype,
    tokens: Int[Tensor, "windows time"],
) -> Float[Tensor, "windows time vocabulary"]:
    """Logits of the checkpoint, float32 on the CPU. Raises ValueError if a tensor differs from the searched model's."""
    lm = searched.lm
    model = checkpoint_format.load(folder, lm.dtype, attention=lm.model.config._attn_implementation)
    model.to(lm.device).eval()  # type: ignore[arg-type]
    windows = tokens.to(lm.device).split(1)
    logits = torch.cat([model(input_ids=window, use_cache=False).logits.float().cpu() for window in windows])
    # compressed-tensors decodes weights at their first use, so they are compared after that
    check_tensors(checkpoint_format, searched, dtype=dtype, model=model)
    return logits

"""Writes the checkpoints of a run. Each one is verified before its folder gets its final name."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from evopress.export.base import Format
from evopress.export.model_card import Facts, model_card
from evopress.export.registry import chosen_formats
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.upload import repository_of
from evopress.export.verification.verify import verify_checkpoint
from evopress.models.pretrained import quiet_transformers
from evopress.runtime.files import path_in_errors, remove_leftovers
from evopress.space.profile_files import to_json

log = logging.getLogger(__name__)


def write_checkpoints(
    settings: Export,
    searched: SearchedModel,
    *,
    tokens: Int[Tensor, "windows time"],
    facts: Facts,
    folder: Path,
) -> dict[str, dict[str, object]]:
    """Write `folder`/<format> for every format of the settings. Existing folders are replaced.

    Args:
        tokens: text on which the logits of each checkpoint are compared with those of the searched model.
        facts: facts about the run for the model card, in the form of `results.json`.

    Returns:
        The folder and the verification of each format, for `results.json`.

    Raises:
        UnsupportedExportError: A format cannot hold the profile. Nothing is written.
        ValueError: A checkpoint differs from the searched model. Its folder is not kept.
    """
    checkpoint_formats = chosen_formats(settings)
    for checkpoint_format in checkpoint_formats:
        checkpoint_format.check_profile(searched)
    results = {}
    for checkpoint_format in checkpoint_formats:
        target = folder / checkpoint_format.name
        results[checkpoint_format.name] = _write_checkpoint(
            checkpoint_format, settings, searched=searched, tokens=tokens, facts=facts, target=target
        )
    return results


def _write_checkpoint(
    checkpoint_format: Format,
    settings: Export,
    *,
    searched: SearchedModel,
    tokens: Tensor,
    facts: Facts,
    target: Path,
) -> dict[str, object]:
    dtype = settings.dtype_or(checkpoint_format.default_dtype(searched))
    with path_in_errors(target), _replacement_of(target) as folder, quiet_transformers():
        checkpoint_format.write(searched, folder, dtype=dtype)
        verification = verify_checkpoint(checkpoint_format, searched, folder=folder, dtype=dtype, tokens=tokens)
        card = model_card(
            checkpoint_format,
            searched,
            verification=verification,
            facts=facts,
            folder=target,
            repository=repository_of(settings, checkpoint_format.name),
        )
        (folder / "README.md").write_text(card)
        header = {key: facts[key] for key in ("model", "compress", "budget", "search", "seed") if key in facts}
        (folder / "profile.json").write_text(to_json(searched.space, searched.profile, **header))
    log.info("%s: %.2f MB, verified, in %s", checkpoint_format.name, verification.written_bytes / 1e6, target)
    return {"folder": str(target), **verification.as_dict()}


@contextmanager
def _replacement_of(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`. It replaces `target` if the body succeeds, and is deleted otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, f".{target.name}-*")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Checks before the search whether the export formats fit the settings and the model, and predicts file sizes."""

from collections.abc import Callable

import torch

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import Format, UnsupportedExportError
from evopress.export.planned import PlannedModel
from evopress.export.registry import chosen_formats
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.upload import check_upload
from evopress.models.language_model import LanguageModel
from evopress.models.structure import ModelStructure
from evopress.models.untokenized import untokenized
from evopress.space.memory import CACHE_TYPES
from evopress.space.settings import SpaceSettings
from evopress.space.units import Space


def check_export(settings: Export, compressor: Compressor | Drop, *, space: SpaceSettings) -> None:
    """Check that every format can hold the levels of the compressor. Reads nothing; the model is not known yet.

    Raises:
        UnsupportedExportError: A format cannot hold them, or does not exist.
        ValueError: There is nothing to upload, or the hub does not allow its name.
    """
    check_upload(settings)
    for checkpoint_format in chosen_formats(settings):
        checkpoint_format.check_settings(compressor, space)


def check_export_of_model(settings: Export, planned: PlannedModel) -> None:
    """Check that every format can hold this model. Reads no weights.

    Raises:
        UnsupportedExportError: A format cannot hold it.
    """
    for checkpoint_format in chosen_formats(settings):
        checkpoint_format.check_model(planned)


def check_cache_type(settings: Export, kv: str) -> None:
    """Check that the engine of every format has the type `kv` of the key-value cache.

    Raises:
        UnsupportedExportError: An engine does not have it.
    """
    for checkpoint_format in chosen_formats(settings):
        known = checkpoint_format.cache_types
        if kv not in known:
            raise UnsupportedExportError(
                f"budget.kv is {kv}, but the engine of export.formats=[{checkpoint_format.name}] has no such type: "
                f"set budget.kv to one of {', '.join(known)}"
            )


def cache_types_of(settings: Export) -> tuple[str, ...]:
    """The types of the key-value cache that the engines of all formats have. Without formats, those of any engine."""
    formats = chosen_formats(settings)
    return tuple(kv for kv in CACHE_TYPES if all(kv in chosen.cache_types for chosen in formats))


def fixed_bytes(settings: Export, lm: LanguageModel, space: Space) -> int:
    """Bytes of the largest file to be written, with headers but without levels. For budgets of file size.

    If no chosen format packs levels, this is `fixed_bytes` of the space.
    """
    sizes = _packed_sizes(settings, lm, space, size_of=_tensor_and_header_bytes)
    return max(sizes, default=space.fixed_bytes)


def fixed_tensor_bytes(settings: Export, structure: ModelStructure, space: Space) -> int:
    """The same as `fixed_bytes` but without headers: what an engine has in memory. Needs no tokenizer."""
    sizes = _packed_sizes(settings, untokenized(structure), space, size_of=_tensor_bytes)
    return max(sizes, default=space.fixed_bytes)


def _packed_sizes(
    settings: Export, lm: LanguageModel, space: Space, *, size_of: Callable[[Format, SearchedModel, torch.dtype], int]
) -> list[int]:
    """The size of each chosen format that packs levels, without the levels."""
    searched = SearchedModel(lm, space, space.uniform(0))
    dtype = settings.dtype_or(torch.float16)
    packed = (chosen for chosen in chosen_formats(settings) if chosen.packs_levels)
    return [size_of(chosen, searched, dtype) - searched.level_bytes for chosen in packed]


def _tensor_bytes(chosen: Format, searched: SearchedModel, dtype: torch.dtype) -> int:
    return chosen.predicted_bytes(searched, dtype)


def _tensor_and_header_bytes(chosen: Format, searched: SearchedModel, dtype: torch.dtype) -> int:
    return chosen.predicted_bytes(searched, dtype) + chosen.predicted_header_bytes(searched)

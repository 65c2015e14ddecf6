"""Checks before the search whether the export formats fit the settings and the model, and predicts file sizes."""

import torch

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.planned import PlannedModel
from evopress.export.registry import chosen_formats
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.upload import check_upload
from evopress.models.language_model import LanguageModel
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


def fixed_bytes(settings: Export, lm: LanguageModel, space: Space) -> int:
    """Bytes of the largest file to be written, with headers but without levels. For budgets in bytes.

    If no chosen format packs levels, this is `fixed_bytes` of the space.
    """
    searched = SearchedModel(lm, space, space.uniform(0))
    dtype = settings.dtype_or(torch.float16)
    sizes = [
        packed.predicted_bytes(searched, dtype) + packed.predicted_header_bytes(searched) - searched.level_bytes
        for packed in chosen_formats(settings)
        if packed.packs_levels
    ]
    return max(sizes, default=space.fixed_bytes)

"""Writes checkpoints that inference engines load. Each one is read back and compared with the searched model.

May import `runtime`, `weights`, `models`, `space`, `compressors` and `database`.
"""

from evopress.export import formats
from evopress.export.base import Format, UnsupportedExportError
from evopress.export.checks import (
    cache_types_of,
    check_cache_type,
    check_export,
    check_export_of_model,
    fixed_bytes,
    fixed_tensor_bytes,
)
from evopress.export.planned import PlannedModel
from evopress.export.registry import register_format
from evopress.export.reload import load
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.upload import check_login, upload_checkpoints
from evopress.export.write import write_checkpoints

__all__ = [
    "Export",
    "Format",
    "PlannedModel",
    "SearchedModel",
    "UnsupportedExportError",
    "cache_types_of",
    "check_cache_type",
    "check_export",
    "check_export_of_model",
    "check_login",
    "fixed_bytes",
    "fixed_tensor_bytes",
    "formats",
    "load",
    "register_format",
    "upload_checkpoints",
    "write_checkpoints",
]

"""Writes the tokenizer and the processor of a checkpoint, which turn texts and images into inputs, and its licences.

These are the files that were published with the model, in a form that transformers 4 and 5 both read. If no such files
are known, as for a tokenizer that was made in memory, the tokenizer is saved.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from evopress.export.older_names import tokenizer_config_for_both
from evopress.models.language_model import LanguageModel
from evopress.runtime.json_files import read_json

TOKENIZER = "tokenizer_config.json"
PROCESSOR = "processor_config.json"
IMAGES = "preprocessor_config.json"

CODE = "auto_map"
"""The key of a configuration that names Python code, in the folder or on the hub. Checkpoints do not get it."""


def write_tokenizer(lm: LanguageModel, folder: Path) -> None:
    """Write every file of the tokenizer."""
    published = lm.origin.tokenizer_files
    has_code = getattr(type(lm.tokenizer), "_auto_class", None) is not None  # saving copies the code as well
    if has_code or TOKENIZER not in published or "tokenizer_class" not in read_json(published[TOKENIZER]):
        lm.tokenizer.save_pretrained(folder)
    else:
        _copy(published, folder)
    config = read_json(folder / TOKENIZER)
    compatible = tokenizer_config_for_both(config)
    compatible = compatible if has_code else _without_code(compatible)
    if config != compatible:
        _write_json(compatible, folder / TOKENIZER)


def write_processor(lm: LanguageModel, folder: Path) -> None:
    """Write the licences, and the files of the image processor if the model has one.

    Transformers 5 may keep the image settings in the processor's file. Transformers 4 needs a separate file for them.
    """
    _copy(lm.origin.model_files, folder)
    for path in (folder / name for name in lm.origin.model_files if name.endswith("config.json")):
        if CODE in (values := read_json(path)):
            _write_json(_without_code(values), path)
    if not (folder / PROCESSOR).is_file() or (folder / IMAGES).is_file():
        return
    processor = read_json(folder / PROCESSOR)
    if "image_processor" in processor:
        _write_json({**processor["image_processor"], "processor_class": processor["processor_class"]}, folder / IMAGES)


def _without_code(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key != CODE}


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files to their paths in `folder`."""
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)


def _write_json(values: Mapping[str, object], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

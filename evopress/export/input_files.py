"""The tokenizer and processor of a checkpoint, which make inputs of texts and images, and its licences.

They are the files that were published with the model, in a form that transformers 4 and 5 read alike. A tokenizer in
memory, of which no such files are known, is saved.
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
"""The key of a configuration that names Python code, of the folder or of the hub. Checkpoints do not pass it on."""


def write_tokenizer(lm: LanguageModel, folder: Path) -> None:
    """Write every file of the tokenizer."""
    published = lm.origin.tokenizer_files
    is_code = getattr(type(lm.tokenizer), "_auto_class", None) is not None  # transformers copies the code when it saves
    if is_code or TOKENIZER not in published or "tokenizer_class" not in read_json(published[TOKENIZER]):
        lm.tokenizer.save_pretrained(folder)
    else:
        _copy(published, folder)
    config = read_json(folder / TOKENIZER)
    for_both = tokenizer_config_for_both(config)
    for_both = for_both if is_code else _without_code(for_both)
    if config != for_both:
        _write_json(for_both, folder / TOKENIZER)


def write_processor(lm: LanguageModel, folder: Path) -> None:
    """Write the files of a processor of images, if the model has one, and licences.

    Transformers 5 may keep the settings for images in the processor's file; transformers 4 has a file for them.
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

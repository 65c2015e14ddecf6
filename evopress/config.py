"""From a composed configuration to a job of plain typed values, with errors that name the key."""

import atexit
import difflib
import logging
import os
import re
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

if TYPE_CHECKING:
    from evopress.job import Job

_INSIDE_PACKAGE = Path(__file__).parent / "conf"
CONFIG_FOLDER = _INSIDE_PACKAGE if _INSIDE_PACKAGE.is_dir() else Path(__file__).parents[1] / "conf"
"""The YAML files: inside the package where it is installed, next to it in a checkout."""

GROUPS = ("model", "data", "compress", "space", "budget", "search", "evaluator", "eval", "export", "tracking")


class ConfigError(Exception):
    """Something in the configuration that the user can mend; the message says what and how."""


def build(cfg: DictConfig, folder: Path) -> "Job":
    """Instantiate every group; `folder` is the run directory. Raises ConfigError."""
    from evopress.job import Job  # takes seconds, which a misspelled key need not cost

    kinds = _kinds()
    parts: dict[str, Any] = {group: _instantiated(cfg, group, kinds[group]) for group in GROUPS}
    parts["tracker"] = parts.pop("tracking")
    return Job(
        **parts,
        stages=tuple(cfg.stages),
        targets=tuple(OmegaConf.to_container(cfg.targets or OmegaConf.create([]))),  # type: ignore[arg-type]
        seed=_integer(cfg, "seed"),
        folder=folder,
        outputs=Path(cfg.outputs),
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
    )


def with_resume(arguments: list[str]) -> list[str]:
    """Turn `resume=DIR …` into arguments that take the configuration saved in DIR; other arguments stay as they are."""
    resumed = [Path(argument.removeprefix("resume=")) for argument in arguments if argument.startswith("resume=")]
    if not resumed or str(resumed[-1]) in ("", "null"):
        return arguments
    saved = resumed[-1].resolve() / ".hydra"
    if not (saved / "config.yaml").is_file():
        raise SystemExit(f"resume={resumed[-1]} is not a run directory: it has no .hydra/config.yaml")
    _refuse_more_than_settings(saved)
    keep = [f"hydra.run.dir={resumed[-1]}", "hydra.output_subdir=null"]
    return ["--config-path", str(saved), *arguments, *keep]


def _refuse_more_than_settings(saved: Path) -> None:
    """Hydra would follow further files, and call functions that its own settings name; no run leaves such behind."""
    content = (saved / "config.yaml").read_text(encoding="utf-8", errors="replace")
    try:
        keys = yaml.safe_load(content).keys()
    except (yaml.YAMLError, AttributeError, RecursionError) as error:
        raise SystemExit(f"{saved}/config.yaml is damaged ({error}): start a new run") from error
    found = [f"the key {key}" for key in sorted(keys & {"hydra", "defaults"})]
    found += ["a @package line"] if re.search(r"^\s*#.*@package", content, re.MULTILINE) else []
    found += [f"the folder {path.name}" for path in saved.iterdir() if path.is_dir()]
    if found:
        raise SystemExit(f"{saved} has {found[0]}, which no run leaves behind: it could run code, so it is not resumed")


def with_one_voice(arguments: list[str]) -> list[str]:
    """The arguments as they are in the first of several processes; the others log errors only and keep no folder."""
    if os.environ.get("RANK", "0") == "0":
        return arguments
    logging.disable(logging.WARNING)
    folder = tempfile.mkdtemp(prefix="evopress-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [*arguments, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", "hydra.output_subdir=null"]


def suggestions(arguments: list[str]) -> list[str]:
    """A line for each overridden key that does not exist, with the nearest one that does."""
    overridden = dict(argument.lstrip("+~").split("=", 1) for argument in arguments if "=" in argument)
    choices = [
        f"{key}={value}" for key, value in overridden.items() if (CONFIG_FOLDER / key / f"{value}.yaml").is_file()
    ]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        known = _keys(compose("config", choices))
    return [
        f"{key} is not a setting: {f'did you mean {close[0]}? ' if close else ''}--cfg job lists all"
        for key in overridden
        if key not in known and not key.startswith("hydra.")
        for close in [difflib.get_close_matches(key, known, n=1)]
    ]


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys below a node."""
    keys = []
    for key in map(str, node):
        keys.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            keys += _keys(node[key], f"{prefix}{key}.")
    return keys


def _kinds() -> dict[str, tuple[type, ...]]:
    """What the class of each group must be one of."""
    from evopress.compressors.base import Compressor
    from evopress.compressors.drop import Drop
    from evopress.data.settings import Data
    from evopress.evaluation.eval_settings import Eval
    from evopress.evaluation.evaluator import EvaluatorSettings
    from evopress.export import Export
    from evopress.models.source import ModelSource
    from evopress.runtime.tracking import Tracker
    from evopress.search.base import Search
    from evopress.space.budget import Budget
    from evopress.space.settings import SpaceSettings

    kinds: list[tuple[type, ...]] = [(ModelSource,), (Data,), (Compressor, Drop), (SpaceSettings,), (Budget,)]
    kinds += [(Search,), (EvaluatorSettings,), (Eval,), (Export,), (Tracker,)]
    return dict(zip(GROUPS, kinds, strict=True))


def _check_target(group: str, settings: object, kinds: tuple[type, ...]) -> None:
    """Raises ConfigError for a `_target_` that is not a class of the group's kind: a saved file could name anything."""
    assert isinstance(settings, dict)
    target = settings.get("_target_")
    try:
        found = get_class(str(target))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{group}._target_ is {target!r}, which is not a class that can be imported") from error
    if not issubclass(found, kinds):
        wanted = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        raise ConfigError(f"{group}._target_ is {target!r}, which is no subclass of {wanted}")
    others = [key for value in settings.values() for key in _special_keys(value)]
    others += [key for key in settings if re.fullmatch("_.*_", str(key)) and key != "_target_"]
    if others:
        raise ConfigError(f"{group} has the key {others[0]}: only one _target_ is allowed, at the top of a group")


def _special_keys(value: object) -> list[str]:
    """Keys such as _target_ at any depth."""
    if isinstance(value, list):
        return [key for part in value for key in _special_keys(part)]
    if not isinstance(value, dict):
        return []
    own = [str(key) for key in value if re.fullmatch("_.*_", str(key))]
    return own + [key for part in value.values() for key in _special_keys(part)]


def _instantiated(cfg: DictConfig, group: str, kinds: tuple[type, ...]) -> object:
    try:
        settings = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
        _check_target(group, settings, kinds)
        return instantiate(cfg[group], _convert_="all")
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{error.full_key or group}: {str(error).splitlines()[0]}; set it on the command line"
        ) from error
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):
            raise ConfigError("\n".join(_explained(group, cfg[group], detail) for detail in cause.errors())) from error
        raise ConfigError(f"{group}: {cause or error}") from error


def _explained(group: str, node: DictConfig, detail: ErrorDetails) -> str:
    """One pydantic complaint in words, with the full key."""
    key = ".".join([group, *(str(part) for part in detail["loc"])])
    if detail["type"] == "unexpected_keyword_argument":
        known = [field.name for field in fields(get_class(node["_target_"]))]
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        return f"{key} is not a setting; {f'did you mean {close[0]}? ' if close else ''}there are {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return f"{group}: {message}"
    return f"{key} is {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _integer(cfg: DictConfig, key: str) -> int:
    if type(cfg[key]) is not int:
        raise ConfigError(f"{key} is {cfg[key]!r}: it must be an integer")
    return cfg[key]

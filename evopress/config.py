"""Turns a composed configuration into a job of plain typed values. Every error names the key to change."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from evopress.runtime.config_class import keys_of

if TYPE_CHECKING:
    from evopress.job import Job

_NEXT_TO_PACKAGE = Path(__file__).parents[1] / "conf"
CONFIG_FOLDER = _NEXT_TO_PACKAGE if _NEXT_TO_PACKAGE.is_dir() else Path(__file__).parent / "conf"
"""The YAML files: next to the package in a checkout, inside it when installed."""

GROUPS = ("model", "data", "compress", "space", "budget", "search", "tune", "evaluator", "eval", "export", "tracking")

SAFE_VALUES = {"model.trust_remote_code": False, "eval.include_path": None}
"""Settings that can run code from outside evopress, each with the value that runs no such code."""


class ConfigError(Exception):
    """A mistake in the configuration. The message says what is wrong, what would be right, and which key to change."""


def build_job(cfg: DictConfig, folder: Path) -> "Job":
    """Build the class of every group. `folder` is the run directory. Raises ConfigError."""
    from evopress.job import GROUP_CLASSES, Job  # imports torch, which takes seconds; --help does not wait for it

    groups = [group for group in GROUPS if group in cfg or group != "tune"]  # older runs have no such group
    parts: dict[str, Any] = {group: _build_group(cfg, group, GROUP_CLASSES[group]) for group in groups}
    parts["tracker"] = parts.pop("tracking")
    return Job(
        **parts,
        stages=tuple(cfg.stages),
        targets=tuple(OmegaConf.to_container(cfg.targets or OmegaConf.create([]))),  # type: ignore[arg-type]
        effort=cfg.get("effort"),  # older runs have no such key
        finish=_finish(cfg),
        seed=_integer(cfg, "seed"),
        folder=folder,
        outputs=Path(cfg.outputs).expanduser(),
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
    )


def check_resumed(cfg: DictConfig, *, overrides: Sequence[str], config_dirs: Sequence[str]) -> None:
    """Raise ConfigError if the settings of a saved run would run code from outside evopress. Imports nothing.

    Such code is allowed only if this command line names it: in `overrides`, or as `_target_` in a YAML file of
    `config_dirs`, the folders that were given by --config-dir.
    """
    named = {override.lstrip("+").partition("=")[0] for override in overrides}
    files = [path for folder in config_dirs for path in Path(folder).rglob("*.yaml")]
    trusted = {target for path in files for target in re.findall(r"_target_:\s*([\w.]+)", path.read_text())}
    for group in GROUPS:
        target = str(OmegaConf.select(cfg, f"{group}._target_", throw_on_resolution_failure=False))
        if not (target.startswith("evopress.") or target in trusted or f"{group}._target_" in named):
            raise ConfigError(
                f"{group}._target_ of the saved run is {target!r}. This code is not part of evopress, so it is not "
                "run: if you trust it, add --config-dir with the folder of the YAML file that names it"
            )
    for key, harmless in SAFE_VALUES.items():
        value = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        if value != harmless and key not in named:
            raise ConfigError(
                f"{key} of the saved run is {value!r}, which can run code from outside evopress: if you trust it, "
                f"add {key}={value} to this command"
            )


def _finish(cfg: DictConfig) -> bool:
    """Whether to take the best so far of the run that is resumed."""
    finish = cfg.get("finish", False)
    if not isinstance(finish, bool):
        raise ConfigError(f"finish is {finish!r}: it must be true or false")
    if finish and not cfg.resume:
        raise ConfigError("finish=true is for a run that was interrupted: give its folder with resume=DIR")
    return finish


def _integer(cfg: DictConfig, key: str) -> int:
    if type(cfg[key]) is not int:
        raise ConfigError(f"{key} is {cfg[key]!r}: it must be an integer")
    return cfg[key]


def _build_group(cfg: DictConfig, group: str, classes: tuple[type, ...]) -> object:
    try:
        settings = OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=True)
        _check_target(group, settings, classes)
        return instantiate(cfg[group], _convert_="all")
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key or group}: {reason}; set it on the command line") from error
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):
            explanations = [_explain(group, cfg[group], detail) for detail in _one_per_key(cause.errors())]
            raise ConfigError("\n".join(explanations)) from error
        raise ConfigError(f"{group}: {cause or error}") from error


def _check_target(group: str, settings: object, classes: tuple[type, ...]) -> None:
    """Raise ConfigError unless `_target_` is a subclass of `classes`: a configuration must not call anything else."""
    assert isinstance(settings, dict)
    target = settings.get("_target_")
    try:
        target_class = get_class(str(target))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{group}._target_ is {target!r}, which is not a class that can be imported") from error
    if not issubclass(target_class, classes):
        expected = " or ".join(f"{cls.__module__}.{cls.__name__}" for cls in classes)
        raise ConfigError(f"{group}._target_ is {target!r}, which is not a subclass of {expected}")
    refused = [key for value in settings.values() for key in _hydra_keys(value)]
    refused += [key for key in settings if re.fullmatch("_.*_", str(key)) and key != "_target_"]
    if refused:
        raise ConfigError(f"{group} has the key {refused[0]}: only one _target_ is allowed, at the top of a group")


def _hydra_keys(value: object) -> list[str]:
    """Keys at any depth that Hydra interprets, such as _target_."""
    if isinstance(value, list):
        return [key for item in value for key in _hydra_keys(item)]
    if not isinstance(value, dict):
        return []
    keys = [str(key) for key in value if re.fullmatch("_.*_", str(key))]
    return keys + [key for item in value.values() for key in _hydra_keys(item)]


def _one_per_key(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """One error per setting. Pydantic reports a setting that may have several types once for each of them.

    The error that is kept is that of the type that the value has, or else the first. The place of an error then names
    only the setting, without a type.
    """
    by_place: dict[tuple[str | int, ...], ErrorDetails] = {}
    for detail in details:
        place = tuple(part for part in detail["loc"] if isinstance(part, int) or part.isidentifier())
        is_of_its_type = not detail["type"].endswith("_type")
        if place not in by_place or (is_of_its_type and by_place[place]["type"].endswith("_type")):
            by_place[place] = {**detail, "loc": place}
    return list(by_place.values())


def _explain(group: str, node: DictConfig, detail: ErrorDetails) -> str:
    """A pydantic error in words, with the full key."""
    key = ".".join([group, *(str(part) for part in detail["loc"])])
    if detail["type"] == "unexpected_keyword_argument":
        *place, name = detail["loc"]
        known = keys_of(_class_at(get_class(node["_target_"]), place))
        return f"{key} is not a setting; {_did_you_mean(str(name), known)}the settings are {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{key} is missing: set it"
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return f"{group}: {message}"
    given = detail["input"]
    lacks_brackets = detail["type"] in ("list_type", "tuple_type") and isinstance(given, (str, int, float))
    example = f", such as {key}=[{given}]" if lacks_brackets else ""
    return f"{key} is {given!r}: {message[0].lower()}{message[1:]}{example}"


def _class_at(cls: Any, place: Sequence[str | int]) -> Any:
    """The dataclass of nested settings: the one at a path such as ("family",) or ("stages", 0) in `cls`."""
    for name in (part for part in place if isinstance(part, str)):
        cls = next(hint for hint in _nested_hints(get_type_hints(cls)[name]) if is_dataclass(hint))
    return cls


def _nested_hints(hint: Any) -> Iterator[Any]:
    """Yield a type hint and all hints inside it, such as `Stage` in `list[Stage]`."""
    yield hint
    for part in get_args(hint):
        yield from _nested_hints(part)


def suggest_keys(arguments: list[str]) -> list[str]:
    """A line for each overridden key that does not exist, with the most similar key that does."""
    overrides = dict(argument.lstrip("+~").split("=", 1) for argument in arguments if "=" in argument)
    choices = [
        f"{key}={value}" for key, value in overrides.items() if (CONFIG_FOLDER / key / f"{value}.yaml").is_file()
    ]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        known = _keys(compose("config", choices))
    return [
        f"{key} is not a setting: {_did_you_mean(key, known)}--cfg job lists all"
        for key in overrides
        if key not in known and not key.startswith("hydra.")
    ]


def suggest_options(arguments: list[str]) -> list[str]:
    """A line for each group that is set to a number or a truth value, with the options that the group has."""
    lines = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        options = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")) if group in GROUPS else []
        if options and value not in options and isinstance(yaml.safe_load(value), (int, float)):
            line = f"{group}={value} is not an option: use {group}= with one of {', '.join(options)}"
            lines.append(f"{line}; for another target, add budget.target={value}" if group == "budget" else line)
    return lines


def _did_you_mean(key: str, known: list[str]) -> str:
    similar = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {similar[0]}? " if similar else ""


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys below a node."""
    keys = []
    for key in map(str, node):
        keys.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            keys += _keys(node[key], f"{prefix}{key}.")
    return keys

"""Composed configurations. Hydra takes a tenth of a second for one, so tests share those with the same options."""

from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from evopress.config import CONFIG_FOLDER


def composed(*overrides: str) -> DictConfig:
    """A new configuration with these overrides.

    Options such as `search=guided` are composed once. Values with a dot in their key are set afterwards, as Hydra does.
    """
    values = [override for override in overrides if _sets_a_value(override)]
    cfg = deepcopy(_with_options(tuple(override for override in overrides if override not in values)))
    for override in OverridesParser.create().parse_overrides(values):
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


def _sets_a_value(override: str) -> bool:
    return "." in override.partition("=")[0] and override[0] not in "+~"


@cache
def _with_options(options: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", list(options))

"""Composed configurations. Hydra takes a tenth of a second for one, so tests share those with the same options."""

from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from evopress.config import CONFIG_FOLDER


def composed(*overrides: str) -> DictConfig:
    """A new configuration, as Hydra composes it with these overrides. Raises what Hydra raises.

    Options such as `search=guided` are composed once. Values of existing keys with a dot are set afterwards.
    """
    values = [override for override in overrides if "." in override.partition("=")[0] and override[0] not in "+~"]
    cfg = deepcopy(_with_options(tuple(override for override in overrides if override not in values)))
    for override in OverridesParser.create().parse_overrides(values):
        if not _has(cfg, override.key_or_group):
            return _with_options(overrides)  # which raises an error
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


def _has(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    return isinstance(node, DictConfig) and name in node.keys()  # noqa: SIM118 - missing values are not `in` a node


@cache
def _with_options(options: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("config", list(options))

"""Reads the mode, the server and the API key from the environment and the files of W&B. Does not import wandb."""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

SERVER = "https://api.wandb.ai"


def configured_mode() -> str:
    """WANDB_MODE if it is set, otherwise online if there is an API key, otherwise offline."""
    chosen = os.environ.get("WANDB_MODE", "").lower()
    if chosen in ("offline", "dryrun"):
        return "offline"
    if chosen == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() == "true":
        return "disabled"
    return "online" if chosen or has_key() else "offline"


def has_key() -> bool:
    """Whether the environment has an API key or names a token file, or the netrc file has an API key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))
        return keys.authenticators(urlparse(_server()).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server() -> str:
    """The address of the server: WANDB_BASE_URL, or else the one that `wandb login --host` saved."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    saved = configparser.ConfigParser(interpolation=None)
    try:
        saved.read(Path(folder) / "settings", encoding="utf-8")
        host = saved.get("default", "base_url", fallback=SERVER)
    except (configparser.Error, UnicodeError):
        host = SERVER
    return os.environ.get("WANDB_BASE_URL") or host

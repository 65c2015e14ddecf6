"""The files `profile.json` and `profile.txt` of a run. They hold the result of its search and what it depends on."""

import json
import logging
from pathlib import Path

from evopress.runtime import distributed
from evopress.runtime.checksums import read_json_if_intact, with_checksum
from evopress.runtime.files import write_atomically
from evopress.runtime.json_files import write_json
from evopress.runtime.versions import installed_versions
from evopress.space.profile_files import from_json, to_json, to_text
from evopress.space.units import Profile, Space

log = logging.getLogger(__name__)


def read_saved_profile(folder: Path, space: Space, settings: dict) -> Profile | None:
    """The profile that a search with the same settings saved, or None. Every process must call this.

    Also writes `profile.txt` again, in case it is missing or damaged.
    """
    path = folder / "profile.json"
    if not distributed.from_first(lambda: read_json_if_intact(path).get("settings") == settings):
        return None
    log.info("the search is already done: %s", path)
    profile = from_json(space, path.read_text(encoding="utf-8"))
    if distributed.is_first():
        write_atomically(folder / "profile.txt", to_text(space, profile))
    return profile


def save_profile(
    folder: Path, space: Space, profile: Profile, *, settings: dict, achieved: float, token_equivalents: float
) -> None:
    """Write `profile.txt` and, last, `profile.json`. `achieved` is the cost of the profile in the budget's unit."""
    facts = {
        "settings": settings,
        "achieved": achieved,
        "token_equivalents": token_equivalents,
        "versions": installed_versions(),
    }
    write_atomically(folder / "profile.txt", to_text(space, profile))
    write_json(folder / "profile.json", with_checksum(json.loads(to_json(space, profile, **facts))))

"""Measures how much disk space is free on this machine, and how busy it is."""

import os
import shutil
from pathlib import Path


def free_disk_bytes(folder: Path) -> int:
    """Free space on the disk of `folder`, which does not have to exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def nearest_existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    path = folder.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def load_per_processor() -> float:
    """How many programs computed or waited for a processor in the last minute, per processor; 0 if not known."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return os.getloadavg()[0] / (os.cpu_count() or 1)

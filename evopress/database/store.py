"""Every layer at every level, on disk: one safetensors file per block, and a manifest that says what is complete.

Layout of a database folder::

    manifest.json            identity and its fingerprint; per finished block: file, size, SHA-256, errors and notes;
                             the SHA-256 of all that
    block-000.safetensors    all levels of all layers of block 0; the header says how each tensor is to be read
    block-001.safetensors    …
    outside.safetensors      embeddings and head, where the compressor takes them; stands as block -1 in the manifest

A block is written to a temporary file, synced, renamed, and then entered in the manifest, itself replaced in the same
way. A build that is killed at any moment therefore leaves whole blocks only, and continues at the first missing one.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save as to_safetensors

from evopress.runtime.checksums import sha256_of, verify_checksum, with_checksum
from evopress.runtime.files import remove_leftovers, write_atomically
from evopress.runtime.json_files import parse_json
from evopress.space.units import OUTSIDE
from evopress.weights.base import CompressedWeight, from_tensors

log = logging.getLogger(__name__)

FORMAT = 1

Identity = Mapping[str, object]
"""What a database depends on, as JSON: model, calibration tokens, compressor and its settings."""


@dataclass(frozen=True)
class BlockLevels:
    """The finished levels of one block: per layer its weights by level, the normalised error of each, and remarks."""

    levels: Mapping[str, list[CompressedWeight]]
    errors: Mapping[str, list[float]]
    notes: tuple[str, ...] = ()


def fingerprint(identity: Identity) -> str:
    """SHA-256 of the identity, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Database:
    """A folder of levels. Open with `Database.open`; read with `read`, fill with `put` while holding `lock()`."""

    folder: Path
    identity: Identity
    expected: tuple[int, ...] = ()
    """The blocks that it has when it is complete; for `inspect`, which knows no model."""
    blocks: dict[int, dict] = field(default_factory=dict)
    """What the manifest says of each finished block."""

    @classmethod
    def open(cls, root: Path, name: str, identity: Identity, expected: Iterable[int] = ()) -> "Database":
        """The database of `identity` below `root`, new or with what is finished of it.

        A damaged block counts as missing. Raises ValueError when the folder holds something else.
        """
        database = cls(root / f"{name}-{fingerprint(identity)[:12]}", dict(identity), tuple(expected))
        database.refresh()
        return database

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one process that fills the database; others wait for it here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            remove_leftovers(self.folder, ".*.tmp")
            yield

    def refresh(self) -> None:
        """Read the manifest again and verify every block that is new in it."""
        if not self.manifest_path.exists():
            return
        manifest = _read_manifest(self.manifest_path)
        if manifest["fingerprint"] != fingerprint(self.identity):
            raise ValueError(f"{self.manifest_path} is for another model, text or compressor: delete {self.folder}")
        for block, entry in manifest["blocks"].items():
            if int(block) in self.blocks:
                continue
            if self._is_whole(entry):
                self.blocks[int(block)] = entry
            else:
                log.warning("%s: block %s is damaged and will be built again", self.folder, block)

    def put(self, block: int, finished: BlockLevels) -> None:
        """Write one block and enter it in the manifest; the block is whole on disk or not there at all."""
        tensors, specs = {}, {}
        for layer, levels in finished.levels.items():
            for index, weight in enumerate(levels):
                specs[f"{layer}@{index}"] = weight.spec()
                tensors.update({f"{layer}@{index}.{part}": t.cpu() for part, t in weight.tensors().items()})
        content = to_safetensors(tensors, metadata={"specs": json.dumps(specs, sort_keys=True)})
        name = "outside.safetensors" if block == OUTSIDE else f"block-{block:03d}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / name, content)
        self.blocks[block] = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "errors": dict(finished.errors),
            "notes": list(finished.notes),
        }
        self._write_manifest()

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        """One level of one layer. Reads only its bytes. Raises KeyError when it is not there."""
        with safe_open(self.folder / self.blocks[block]["file"], "pt") as file:
            spec = json.loads(file.metadata()["specs"])[f"{layer}@{level}"]
            prefix = f"{layer}@{level}."
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
            return from_tensors(spec, {name.removeprefix(prefix): file.get_tensor(name) for name in names})

    def errors(self, block: int, layer: str) -> list[float]:
        return self.blocks[block]["errors"][layer]

    @property
    def notes(self) -> list[str]:
        """What went other than planned in any block."""
        return [note for block in sorted(self.blocks) for note in self.blocks[block]["notes"]]

    @property
    def size_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.blocks.values())

    def _write_manifest(self) -> None:
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint(self.identity),
            "identity": self.identity,
            "expected": self.expected,
            "blocks": {str(block): self.blocks[block] for block in sorted(self.blocks)},
        }
        write_atomically(self.manifest_path, json.dumps(with_checksum(manifest), indent=1, sort_keys=True))

    def _is_whole(self, entry: Mapping) -> bool:
        path = self.folder / entry["file"]
        return (
            path.parent == self.folder
            and path.is_file()
            and path.stat().st_size == entry["bytes"]
            and sha256_of(path) == entry["sha256"]
        )


def _read_manifest(path: Path) -> dict:
    try:
        manifest = verify_checksum(parse_json(path.read_bytes()))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, this version reads {FORMAT}")
        manifest["fingerprint"]
        for block, entry in manifest["blocks"].items():
            int(block), Path(entry["file"]), entry["bytes"], entry["sha256"], entry["errors"], entry["notes"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a manifest ({error}): delete {path.parent} to rebuild") from error
    return manifest

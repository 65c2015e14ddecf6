"""Stores every layer at every level on disk: one safetensors file per block, and a manifest of the finished blocks.

Layout of a database folder::

    manifest.json            identity and its fingerprint; file, size, SHA-256, errors and notes of each finished block;
                             a SHA-256 of this content
    block-000.safetensors    all levels of all layers of block 0; the header says how to read each tensor
    block-001.safetensors    …
    outside.safetensors      embeddings and head, if the compressor compresses them; block -1 in the manifest

A block is written to a temporary file, synced and renamed. Then it is entered in the manifest, which is replaced in the
same way. So a build that is killed at any moment leaves only complete blocks. The next build adds the missing ones.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from safetensors.torch import save as to_safetensors

from evopress.database.block_file import BlockFile
from evopress.database.manifest import BlockEntry, Identity, fingerprint, read_manifest, write_manifest
from evopress.runtime.checksums import sha256_of
from evopress.runtime.files import remove_leftovers, write_atomically
from evopress.space.units import OUTSIDE
from evopress.weights.base import CompressedWeight

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockLevels:
    """A finished block: the weights and the normalised error of every level, by layer, and the compressor's notes."""

    levels: Mapping[str, list[CompressedWeight]]
    errors: Mapping[str, list[float]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Database:
    """A folder of levels. Open it with `Database.open`, read it with `read`, and fill it with `put` under `lock()`."""

    folder: Path
    identity: Identity
    expected: tuple[int, ...] = ()
    """The blocks of the complete database. Recorded for `inspect`, which does not load the model."""
    blocks: dict[int, BlockEntry] = field(default_factory=dict)
    """The manifest's entry of each finished block."""
    _files: dict[int, BlockFile] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, root: Path, name: str, identity: Identity, expected: Iterable[int] = ()) -> "Database":
        """The database of `identity` in a folder below `root`, with the blocks that are already finished.

        A damaged block counts as missing. Raises ValueError if the folder belongs to another identity.
        """
        database = cls(root / f"{name}-{fingerprint(identity)[:12]}", dict(identity), tuple(expected))
        database.refresh()
        return database

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The lock of the process that fills the database. Other processes wait here until it is released."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            remove_leftovers(self.folder, ".*.tmp")
            yield

    def refresh(self) -> None:
        """Read the manifest again, and verify the files of blocks that are new in it."""
        if not self.manifest_path.exists():
            return
        for block, entry in read_manifest(self.manifest_path, self.identity).items():
            if block in self.blocks:
                continue
            if self._is_intact(entry):
                self.blocks[block] = entry
            else:
                log.warning("%s is damaged and will be built again", self.folder / entry["file"])

    def _is_intact(self, entry: BlockEntry) -> bool:
        path = self.folder / entry["file"]
        return (
            path.parent == self.folder
            and path.is_file()
            and path.stat().st_size == entry["bytes"]
            and sha256_of(path) == entry["sha256"]
        )

    def put(self, block: int, finished: BlockLevels) -> None:
        """Write one block and enter it in the manifest. A crash leaves either the complete block or none of it."""
        content = _to_bytes(finished.levels)
        name = "outside.safetensors" if block == OUTSIDE else f"block-{block:03d}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / name, content)
        self._files.pop(block, None)
        self.blocks[block] = {
            "file": name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "errors": dict(finished.errors),
            "notes": list(finished.notes),
        }
        write_manifest(self.manifest_path, self.identity, expected=self.expected, entries=self.blocks)

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        """One level of one layer. No other level is read. Raises KeyError if the level is not in the database.

        The file of the block stays open until the block is written again.
        """
        if block not in self._files:
            self._files[block] = BlockFile(self.folder / self.blocks[block]["file"])
        return self._files[block].read(f"{layer}@{level}")

    def errors(self, block: int, layer: str) -> list[float]:
        """The normalised error of a layer at each level."""
        return self.blocks[block]["errors"][layer]

    @property
    def notes(self) -> list[str]:
        """The notes of the compressor on all blocks."""
        return [note for block in sorted(self.blocks) for note in self.blocks[block]["notes"]]

    @property
    def size_bytes(self) -> int:
        """Bytes of the files of all finished blocks."""
        return sum(entry["bytes"] for entry in self.blocks.values())


def _to_bytes(levels: Mapping[str, list[CompressedWeight]]) -> bytes:
    """All levels of all layers of a block as the bytes of a safetensors file. The key of each spec is `layer@level`."""
    tensors, specs = {}, {}
    for layer, weights in levels.items():
        for level, weight in enumerate(weights):
            specs[f"{layer}@{level}"] = weight.spec()
            tensors.update({f"{layer}@{level}.{name}": tensor.cpu() for name, tensor in weight.tensors().items()})
    return to_safetensors(tensors, metadata={"specs": json.dumps(specs, sort_keys=True)})

"""Checks a level database against its manifest."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from evopress.database.manifest import FORMAT, fingerprint
from evopress.inspection.finding import Finding, read_object, settings_in_words
from evopress.report.wording import megabytes
from evopress.runtime.checksums import sha256_of
from evopress.space.units import OUTSIDE

REBUILT = "the next run with these settings builds it again"


def is_database(folder: Path) -> bool:
    """Whether a folder has a manifest with a fingerprint, or a manifest and files of blocks."""
    if not (folder / "manifest.json").is_file():
        return False
    return "fingerprint" in read_object(folder / "manifest.json", Finding("", folder)) or any(folder.glob("block-*"))


def inspect_database(folder: Path) -> Finding:
    """Verify the identity of a level database and the size, SHA-256 and header of every block."""
    finding = Finding("database", folder)
    manifest = read_object(folder / "manifest.json", finding)
    if not manifest:
        return finding
    identity, blocks = manifest.get("identity"), manifest.get("blocks")
    if manifest.get("format") != FORMAT or not isinstance(identity, dict) or not isinstance(blocks, dict):
        finding.defects.append(f"manifest.json is not of format {FORMAT}: delete the folder to build it again")
        return finding
    _check_fingerprint(finding, identity, recorded=manifest.get("fingerprint"))
    num_levels: Counter[str] = Counter()
    entries = {name: entry if isinstance(entry, dict) else {} for name, entry in blocks.items()}
    for name, entry in entries.items():
        num_levels.update(_levels_of_block(finding, name, entry))
    listed = manifest.get("expected")
    expected = [str(block) for block in listed] if isinstance(listed, list) else []
    missing = [_block_name(block) for block in expected if block not in entries]
    if missing:
        finding.unfinished = f"{', '.join(missing)} missing; the next run with these settings builds the rest"
    counts = " or ".join(map(str, sorted(set(num_levels.values()))))
    notes = [str(note) for entry in entries.values() for note in entry.get("notes") or ()]
    finding.facts |= {
        "compressor": settings_in_words(identity.get("compressor")),
        "model": f"{str(identity.get('model'))[:12]}, {identity.get('dtype')}",
        "blocks": _blocks_in_words(entries, expected),
        "layers": f"{len(num_levels)} at {counts} levels" if num_levels else "none",
        **({"notes": "; ".join(notes)} if notes else {}),
    }
    return finding


def _check_fingerprint(finding: Finding, identity: Mapping, *, recorded: object) -> None:
    actual = fingerprint(identity)
    if recorded != actual:
        finding.defects.append("the fingerprint in manifest.json does not match its identity")
    elif not finding.path.resolve().name.endswith(actual[:12]):
        finding.defects.append(
            f"the folder has the name of another database: the name of this one ends with {actual[:12]}"
        )


def _blocks_in_words(entries: Mapping[str, Mapping], expected: list[str]) -> str:
    """2 of 3 and embeddings and head, 1.23 MB"""
    num_blocks = len(entries.keys() - {str(OUTSIDE)})
    total = f" of {len(set(expected) - {str(OUTSIDE)})}" if expected else ""
    outside = f" and {_block_name(str(OUTSIDE))}" if str(OUTSIDE) in entries else ""
    stored = sum(entry["bytes"] for entry in entries.values() if isinstance(entry.get("bytes"), int))
    return f"{num_blocks}{total}{outside}, {megabytes(stored)} MB"


def _block_name(block: str) -> str:
    return "embeddings and head" if block == str(OUTSIDE) else f"block {block}"


def _levels_of_block(finding: Finding, name: str, entry: Mapping) -> Mapping[str, int]:
    """The number of levels per layer of one block. A file that does not match its entry is a defect and has none."""
    file = entry.get("file")
    if not isinstance(file, str) or Path(file).name != file:
        finding.defects.append(f"{_block_name(name)}: its entry in manifest.json cannot be read; {REBUILT}")
        return {}
    path = finding.path / file
    if not path.is_file():
        problem = f"{file} is missing"
    elif path.stat().st_size != entry.get("bytes"):
        problem = f"{file} has {path.stat().st_size} bytes, not {entry.get('bytes')}"
    elif sha256_of(path) != entry.get("sha256"):
        problem = f"{file} does not have the SHA-256 in the manifest"
    else:
        return _levels_in_header(path, finding)
    finding.defects.append(f"{_block_name(name)}: {problem}; {REBUILT}")
    return {}


def _levels_in_header(path: Path, finding: Finding) -> Mapping[str, int]:
    try:
        with safe_open(path, "np") as file:
            specs = json.loads((file.metadata() or {})["specs"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        finding.defects.append(f"{path.name}: its header cannot be read ({error})")
        return {}
    return Counter(key.rpartition("@")[0] for key in specs)

"""Whether a level database is what its manifest says."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from evopress.database.store import FORMAT, fingerprint
from evopress.inspection.finding import Finding, in_words, read_object
from evopress.report.style import megabytes
from evopress.runtime.checksums import sha256_of
from evopress.space.units import OUTSIDE


def is_database(folder: Path) -> bool:
    """Whether the manifest is one of ours, or lies beside blocks of ours."""
    if not (folder / "manifest.json").is_file():
        return False
    return "fingerprint" in read_object(folder / "manifest.json", Finding("", folder)) or any(folder.glob("block-*"))


def inspect_database(folder: Path) -> Finding:
    """Verify the identity of a level database and every block of it: size, SHA-256 and header."""
    finding = Finding("database", folder)
    manifest = read_object(folder / "manifest.json", finding)
    if not manifest:
        return finding
    identity, blocks = manifest.get("identity"), manifest.get("blocks")
    if manifest.get("format") != FORMAT or not isinstance(identity, dict) or not isinstance(blocks, dict):
        finding.damages.append(f"manifest.json is not of format {FORMAT}: delete the folder to build it again")
        return finding
    if manifest.get("fingerprint") != fingerprint(identity):
        finding.damages.append("the fingerprint in manifest.json is not that of its identity")
    elif not folder.resolve().name.endswith(fingerprint(identity)[:12]):
        finding.damages.append(f"the folder is named for another database, this one is {fingerprint(identity)[:12]}")
    layers: Counter[str] = Counter()
    entries = {name: entry if isinstance(entry, dict) else {} for name, entry in blocks.items()}
    for name, entry in entries.items():
        layers.update(_verified_block(folder, name, entry, finding))
    expected = [str(block) for block in found] if isinstance(found := manifest.get("expected"), list) else []
    missing = [_named(block) for block in expected if block not in entries]
    if missing:
        finding.unfinished = f"{', '.join(missing)} missing; the next run with these settings goes on from there"
    stored = sum(entry["bytes"] for entry in entries.values() if isinstance(entry.get("bytes"), int))
    inside = [block for block in entries if block != str(OUTSIDE)]
    of = f" of {len(expected) - (str(OUTSIDE) in expected)}" if expected else ""
    ends = f" and {_named(str(OUTSIDE))}" if str(OUTSIDE) in entries else ""
    finding.facts |= {
        "compressor": in_words(identity.get("compressor")),
        "model": f"{str(identity.get('model'))[:12]}, {identity.get('dtype')}",
        "blocks": f"{len(inside)}{of}{ends}, {megabytes(stored)} MB",
        "layers": f"{len(layers)} at {' or '.join(map(str, sorted(set(layers.values()))))} levels"
        if layers
        else "none",
    }
    notes = [str(note) for entry in entries.values() for note in entry.get("notes") or ()]
    finding.facts |= {"notes": "; ".join(notes)} if notes else {}
    return finding


def _named(block: str) -> str:
    return "embeddings and head" if block == str(OUTSIDE) else f"block {block}"


def _verified_block(folder: Path, name: str, entry: Mapping, finding: Finding) -> Mapping[str, int]:
    """Number of levels per layer of one block; adds what is wrong to the finding."""
    remedy = "the next run with these settings builds it again"
    file = entry.get("file")
    if not isinstance(file, str) or Path(file).name != file:
        finding.damages.append(f"{_named(name)}: its entry in manifest.json cannot be read; {remedy}")
        return {}
    path = folder / file
    if not path.is_file():
        finding.damages.append(f"{_named(name)}: {path.name} is missing; {remedy}")
    elif path.stat().st_size != entry.get("bytes"):
        finding.damages.append(
            f"{_named(name)}: {path.name} has {path.stat().st_size} bytes, not {entry.get('bytes')}; {remedy}"
        )
    elif sha256_of(path) != entry.get("sha256"):
        finding.damages.append(f"{_named(name)}: {path.name} has another SHA-256 than the manifest says; {remedy}")
    else:
        return _levels(path, finding)
    return {}


def _levels(path: Path, finding: Finding) -> Mapping[str, int]:
    try:
        with safe_open(path, "np") as file:
            specs = json.loads((file.metadata() or {})["specs"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        finding.damages.append(f"{path.name}: its header cannot be read ({error})")
        return {}
    return Counter(key.rpartition("@")[0] for key in specs)

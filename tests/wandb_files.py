"""Reads the files that W&B writes."""

import time
from collections.abc import Iterator
from pathlib import Path


def wandb_records(folder: Path) -> list:
    """All records of the offline run below `folder`, as W&B's protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while True:  # W&B writes the file in another process, which may lag behind on a busy machine
        records = [wandb_internal_pb2.Record.FromString(data) for data in _log_entries(path.read_bytes())]
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.2)


def _log_entries(content: bytes, block: int = 32768, header: int = 7) -> Iterator[bytes]:
    """Entries of a LevelDB log, the format of W&B's files: blocks of parts, each with checksum, length and type."""
    position, entry = header, b""  # the file header takes the first seven bytes
    while position + header <= len(content):
        if block - position % block < header:
            position += block - position % block
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]  # 1: whole entry, 2: first part, 3: middle part, 4: last part
        entry += content[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):
            yield entry
            entry = b""

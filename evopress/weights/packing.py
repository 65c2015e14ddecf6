"""Dense packing of integer codes into 32-bit words."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def num_words(count: int, bits: int) -> int:
    """The number of 32-bit words that hold `count` codes."""
    return -(-count * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes (rows, cols) into int32 (rows, ⌈cols·bits/32⌉).

    Element i of a row occupies bits i·bits … of the row's little-endian bit string, and may straddle words.
    Source: `pack-quantized` of compressed-tensors 0.18 and later.
    """
    rows, cols = codes.shape
    eights = pad(codes, (0, -cols % 32)).flatten().view(torch.int64)  # 8 codes in 8 bytes; 32 of them fill words
    for count in (1, 2, 4):  # in each pair of runs of `count` codes, move the second run next to the first
        first, second = _runs(count, bits)
        moved = (eights >> (8 - bits) * count).bitwise_and_(second >> (8 - bits) * count)
        eights = moved.bitwise_or_(eights & first)
    octets = eights.view(torch.uint8).view(-1, 8)[:, :bits].reshape(rows, -1)  # 8 codes in `bits` bytes
    return octets.view(torch.int32)[:, : num_words(cols, bits)].contiguous()


def unpack(packed: Tensor, bits: int, *, cols: int) -> Tensor:
    """Undo `pack`: int32 (rows, words) to uint8 (rows, cols)."""
    rows = packed.shape[0]
    plain = packed if packed.stride() == (packed.shape[1], 1) else packed.clone(memory_format=torch.contiguous_format)
    octets = plain.view(torch.uint8)  # contiguous() would leave a single column its strides, which cannot be viewed
    octets = pad(octets, (0, -(-cols // 8) * bits - octets.shape[1]))
    eights = pad(octets.reshape(-1, bits), (0, 8 - bits)).view(torch.int64)
    for count in (4, 2, 1):
        first, second = _runs(count, bits)
        moved = (eights << (8 - bits) * count).bitwise_and_(second)
        eights = eights.bitwise_and_(first).bitwise_or_(moved)
    return eights.view(torch.uint8).view(rows, -1)[:, :cols]


def _runs(count: int, bits: int) -> tuple[int, int]:
    """Two masks of 64 bits for runs of `count` codes, each run in `count` bytes: one for runs 0, 2, …, one for 1, 3, ….

    Codes of 8 bits reach into the sign of an int64, but they are never moved.
    """
    run, distance = (1 << count * bits) - 1, 16 * count
    first = sum(run << place for place in range(0, 64, distance))
    second = first << 8 * count
    return first, second - (1 << 64) if second >> 63 else second

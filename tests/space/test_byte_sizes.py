"""Sizes with decimal and binary suffixes are exact numbers of bytes."""

import pytest

from evopress.space.byte_sizes import parse_bytes


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        ("80MB", 80_000_000),
        (" 1.5 GiB ", 3 * 2**29),
        ("75mib", 75 * 2**20),
        ("0.001KB", 1),
        (".5kb", 500),
        ("2.KB", 2000),
        ("4.35GB", 4_350_000_000),  # 4349999999 in floats
        ("7B", 7),
        ("12", 12),
        (1234, 1234),
        (3.5e9, 3_500_000_000),
    ],
)
def test_a_size_is_a_number_of_bytes(size, num_bytes):
    assert parse_bytes(size) == num_bytes


@pytest.mark.parametrize(
    "size", ["", "MB", "80 XB", "8O MB", "-5MB", "1,5GB", "1.2.3MB", "nan", "inf", "80MB!", "0x10"]
)
def test_anything_else_is_rejected(size):
    with pytest.raises(ValueError, match="is not a size: write for example 80MB"):
        parse_bytes(size)

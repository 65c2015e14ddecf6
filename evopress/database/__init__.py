"""Levels on disk, decoded levels in memory, and the block-by-block build."""

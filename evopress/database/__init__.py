"""Databases of levels: built block by block, stored on disk, decoded into memory. May import compressors and below."""

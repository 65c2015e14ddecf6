"""Compressors: each makes the levels of layers that read the same input. Imports `runtime`, `weights` and `space`."""

"""Compressors. Each one makes the levels of layers that read the same input.

May import `runtime`, `weights`, `space` and `imports`.
"""

"""Compressed weights in packed form, and their grids."""

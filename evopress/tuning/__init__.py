"""Tunes what a compressed model keeps in floating point, with its levels and codes fixed.

Imports runtime, weights, models, space, database and evaluation.
"""

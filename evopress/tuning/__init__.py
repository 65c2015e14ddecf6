"""Trains the floating-point parts of a compressed model, while its levels and integer codes stay as they are.

Imports runtime, weights, models, space, database and evaluation.
"""

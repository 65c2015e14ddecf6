"""Estimates the memory, disk space and time that each stage of a run will take.

May import every room except `report`, `inspection` and `pareto`, and the top modules `job` and `targets`.
"""

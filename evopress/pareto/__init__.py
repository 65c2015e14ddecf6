"""Runs a search for every budget in a list, all on one database.

May import every room except planning and the pipeline.
"""

"""Measures profiles: fitness, effects of level switches, scores on tasks.

May import `runtime`, `data`, `models`, `space`, `database` and `search`.
"""

"""Files, clock, memory, progress, signals, processes and tracking."""

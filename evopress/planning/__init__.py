"""What a run would take: memory, disk and time of each stage. May import everything except pareto and the pipeline."""

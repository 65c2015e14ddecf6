"""What is measured of profiles: fitness, switch effects, tasks."""

"""What is measured of profiles: fitness, switch effects, scores on tasks. May import rooms up to search, not export."""

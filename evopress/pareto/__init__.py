"""A search for every budget of a list, all on one database. May import every room except planning and the pipeline."""

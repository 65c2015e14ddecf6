"""Units, levels, profiles and budgets, and what they mean for a model. May import runtime and models."""

"""Units, levels, profiles and budgets."""

"""Search methods: each picks one level per unit within a budget. Imports only runtime and space."""

"""Models: load one; its blocks, layers and experts."""

"""Language models: load one, run it block by block, and replace its weights. May import `runtime`."""

"""Text and tokens: where text comes from, and the token windows that are cut from it. May import `runtime`."""

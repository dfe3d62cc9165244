"""argv -> frozen settings: flags, checks and defaults. Nothing here imports torch."""

"""argv -> frozen settings -> plan: flags, validation and defaults. Imports no torch."""

"""One command from settings to a finished file: session, journal, manifest, signals and exit codes."""

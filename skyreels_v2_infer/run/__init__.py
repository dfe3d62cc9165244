"""A command from argv to the finished file: job, session, journal, manifest, signals and exit codes."""

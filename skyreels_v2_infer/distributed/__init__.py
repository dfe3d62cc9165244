"""Several processes (ranks) on one video: who they are, how the work is laid out, and what they exchange."""

"""Checkpoints: finding and downloading their files, verifying them, and loading them into modules."""

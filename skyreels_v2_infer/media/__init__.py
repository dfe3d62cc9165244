"""Reads images and videos, writes videos and previews, measures frames. Nothing here imports torch."""

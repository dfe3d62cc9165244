"""Pictures and videos in, videos and previews out. Nothing here imports torch."""

"""Settings -> plan: what is made, in which windows, from which prompts, at which cost. Nothing here imports torch."""

"""Checkpoints: where their files are, whether they are whole, and how their tensors become modules."""

"""Structural captions of videos (SkyCaptioner-V1), and the prompts that are made from them."""

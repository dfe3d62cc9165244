"""Caches that reuse what the transformer's blocks computed in an earlier step."""

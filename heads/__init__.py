"""Heads: light models that train from a cache."""

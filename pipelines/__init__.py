"""Pipelines: one ``run(config)`` each, and the commands that drive them."""

"""Evaluation tasks: a model in memory in, values with 95 % intervals out. For evaluate and for training's `watch`."""

"""Stages: each reads records and a model, writes its own folder, and returns what it made."""

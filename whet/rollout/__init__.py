"""Engines: who generates. Everything above sees only the protocol in `engine`."""

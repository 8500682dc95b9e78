"""Plans: strict models, importable without torch."""

"""A finished or unfinished run as one page: numbers read from its directory, charts, sentences. No torch."""

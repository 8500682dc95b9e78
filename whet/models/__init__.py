"""Models: loading, adapters, scoring, merging, and a tiny checkpoint built on the spot. Knows no data."""

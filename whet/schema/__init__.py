"""The types that cross between rooms: records, rollouts, metrics. Plain dataclasses, no torch."""

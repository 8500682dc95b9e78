"""Objectives: pure formulas on tensors. No config, no device, no rank, no logging."""

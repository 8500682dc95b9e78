"""Measured against other tools: `python -m benchmarks sft|dpo|reward --model SIZE --peer trl`. See README.md here."""

"""What a training costs before anyone waits: memory by part, and time, by arithmetic. No torch here."""

"""What is stored: log, archive, generations. Knows nothing of HTTP, Dagster or rules."""

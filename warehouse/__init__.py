"""What is stored: the log, the archive, the generations. Knows nothing of HTTP, Dagster or rules."""

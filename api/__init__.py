"""Who may write, and what the world sees."""

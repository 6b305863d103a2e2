"""From outcome logs to a table: prompts down, tiers across."""

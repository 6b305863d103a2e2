"""Price maps of others, and what they say of a tiers.toml: `broker init` and `broker prices`."""

"""Who takes part in a step."""

"""Running many configurations, and a store of their results that survives interruption."""

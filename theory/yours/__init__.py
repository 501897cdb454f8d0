"""The claims on other people's code: losses, models, modules."""

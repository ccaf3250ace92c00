"""A command line becomes one call."""

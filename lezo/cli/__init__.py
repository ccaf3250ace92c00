"""The commands: a command line becomes one call."""

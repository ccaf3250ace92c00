"""Overrides to one checked RunConfig: values, ranges and names; no torch, and no room of the engine imports it."""

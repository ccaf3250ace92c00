"""Overrides to one checked RunConfig: values, ranges and names; no torch, and the engine imports no more of it than `methods`."""

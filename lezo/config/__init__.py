"""Overrides to one checked RunConfig; no torch, and the engine imports no more of it than `methods`."""

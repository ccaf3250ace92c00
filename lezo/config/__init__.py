"""Overrides to one checked RunConfig; no torch; of it zo imports only `methods`."""

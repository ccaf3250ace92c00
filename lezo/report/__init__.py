"""Reads records and draws; no torch, and nothing is written into a run."""

"""Seed, batch and model to losses and one update; the only room that writes weights in training."""

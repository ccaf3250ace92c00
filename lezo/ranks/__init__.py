"""Several processes that make one run: who they are, and what they say to each other; knows no model."""

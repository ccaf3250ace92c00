"""A causal language model with named blocks, and what it says where answers are scored; never perturbs."""

"""One run: plan, begin or go on, loop, result."""

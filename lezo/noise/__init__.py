"""z is a function of (seed, tensor, element), the same bits everywhere; imports no other room."""

"""Many runs, each a process of its own, and who runs where."""

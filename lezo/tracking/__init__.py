"""What a run tells wandb, a mirror that can neither stall nor end it."""

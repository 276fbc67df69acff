"""What a run leaves on the disk: its ledger, checkpoints, and what they are bound to."""

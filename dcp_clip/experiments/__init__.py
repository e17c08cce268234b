"""What the programs for experiments in tools/ share."""

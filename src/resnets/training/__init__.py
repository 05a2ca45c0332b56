"""Train models: the loop, the optimiser, the transfer plan and the saved state."""

"""Learning a force field from labels: the loss, the loop, checkpoints, many processes."""

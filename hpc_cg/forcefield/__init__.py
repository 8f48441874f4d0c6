"""The coarse-grained force field: fixed physical priors plus a network that learns what the priors miss."""

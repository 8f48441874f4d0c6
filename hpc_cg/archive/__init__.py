"""The archive of all-atom trajectories: what it holds (index), how it is read, how one is made."""

"""Kernels: conditional densities of coarse-grained positions whose scores are coarse-grained forces."""

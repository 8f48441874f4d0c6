"""Denoising diffusion models of beads: one network that gives samples and, at little noise, a force field."""

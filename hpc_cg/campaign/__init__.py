"""Campaigns: many studies that differ in a few settings, and the page on what they found together."""

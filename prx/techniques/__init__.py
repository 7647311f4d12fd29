"""Techniques: one file each, found through `prx.registry`."""

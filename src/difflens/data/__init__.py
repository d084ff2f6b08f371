"""Data sets: their sources, splits and labels, and the loader that brings images to the network."""

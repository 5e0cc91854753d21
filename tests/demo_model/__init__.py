"""Trains the bundled demo checkpoint from nothing; never ships."""

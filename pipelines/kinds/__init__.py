"""What can be asked: one file a kind, found by the registry."""

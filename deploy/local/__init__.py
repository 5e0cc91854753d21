"""The embedded stack: real servers from packages, a supervisor, the demo."""

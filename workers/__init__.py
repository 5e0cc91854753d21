"""Celery and processes: thin wrappers from an id to a step to an outcome."""

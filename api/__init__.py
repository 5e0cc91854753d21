"""HTTP, command line, client and dashboard: thin wrappers around `pipelines.control` and `pipelines.steps.submit`."""

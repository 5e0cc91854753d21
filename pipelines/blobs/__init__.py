"""Objects by key: S3, a local folder, memory; one port, one conformance suite."""

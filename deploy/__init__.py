"""How it runs: the embedded stack, containers, manifests, the runbook."""

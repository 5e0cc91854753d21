"""Nothing accepted is lost, nothing ends twice: the real stack under seeded faults, and a ledger of what came of it."""

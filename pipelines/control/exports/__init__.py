"""Results of an ended job as objects: shards first, the manifest last."""

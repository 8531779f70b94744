"""What lies on disk: shards, manifests, statistics; writing them, reading them, checking them."""

"""Read raw items: the bytes of a molecule or an image."""

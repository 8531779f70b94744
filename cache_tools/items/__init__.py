"""Raw items: how the bytes of a molecule or an image are read."""

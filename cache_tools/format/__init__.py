"""The files of a cache: write, read and check shards, manifests and statistics."""

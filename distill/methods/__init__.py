"""Methods beside the paper's, a file each: heads and objectives that a configuration names."""

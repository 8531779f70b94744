"""Training: the Lightning module, its metrics, and the callbacks that watch a fit."""

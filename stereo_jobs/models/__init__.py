"""Stable Diffusion checkpoints and depth estimators: found and pinned without torch, loaded with it."""

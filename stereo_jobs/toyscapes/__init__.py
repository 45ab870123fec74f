"""ToyScapes: a small world of stereo scenes with exact truth, and the demo models trained on it."""

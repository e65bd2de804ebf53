"""Rollouts: answers of the model that is trained, sampled by the engine between its steps, as batches for the loop."""

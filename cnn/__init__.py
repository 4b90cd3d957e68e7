"""Convolutional networks as pure functions: models, tasks, data, training."""

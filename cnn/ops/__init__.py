"""Pure array functions that layers, models and tasks stand on."""

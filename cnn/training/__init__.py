"""One step, one loop, one checkpoint for every task."""

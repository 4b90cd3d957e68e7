"""Examples: where they come from, how they are batched, how they are augmented."""

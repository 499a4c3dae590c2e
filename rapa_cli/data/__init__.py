"""Where images come from: readers of the formats users have, the memory-mapped store, the embedded data set."""

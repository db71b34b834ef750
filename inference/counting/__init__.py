"""How a count gets its interval: expected numbers, the statistics, and which patches to label."""

"""Training: the loop, the schedule, and what a run leaves behind."""

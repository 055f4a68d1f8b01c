"""Planning: what a run will hold in memory, worked out on a base without numbers, before a weight is read."""

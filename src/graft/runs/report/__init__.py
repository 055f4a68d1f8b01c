"""The page of a run, of a chain of runs, and of judgements: one HTML file each, which needs nothing else."""

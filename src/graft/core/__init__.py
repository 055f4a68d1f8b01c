"""The mechanism: named places of a model, what is put there, and which rows of a batch it answers for."""

"""What a run will need: memory and time, from the real objects under fake tensors."""

"""Runs: carry out a recipe, open its folder again, ask and score what was opened."""

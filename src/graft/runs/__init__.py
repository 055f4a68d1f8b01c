"""A recipe carried out, its folder opened again, and what is asked of what was opened."""

"""Adapters made of adapters, and adapters made of the difference between two models."""

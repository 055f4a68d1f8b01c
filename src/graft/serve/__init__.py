"""Serving: many adapters on one base, over HTTP, by the decoding engine."""

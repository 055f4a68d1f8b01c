"""Text from a base: the one place where decoding happens."""

"""What several methods share: where they go, and the parts that they are built of."""

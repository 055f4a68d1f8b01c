"""The frozen model and its adapters: attaching, routing, merging, checkpointing and compiling are written here once."""

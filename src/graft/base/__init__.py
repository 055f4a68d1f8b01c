"""The frozen model and its adapters: attach, route, merge, checkpoint and compile, each written once."""

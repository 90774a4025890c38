"""Runs a selector over the shards of a pool, under Lightning's ``predict``."""

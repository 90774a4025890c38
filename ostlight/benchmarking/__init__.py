"""Compares selectors: planned runs, tasks, worker processes, tables and plots."""

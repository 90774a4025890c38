"""Selectors against each other: cells, tables, pictures."""

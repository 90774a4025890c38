"""Answers generated and judged."""

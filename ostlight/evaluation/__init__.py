"""Generates answers to test questions and compares them to the expected ones."""

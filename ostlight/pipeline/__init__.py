"""The stages of a run: select, train and evaluate, and the run folder they write."""

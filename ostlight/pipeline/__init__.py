"""The steps of a run, each from files to files: select, train, evaluate, benchmark."""

"""One module an estimator of the one-step utility."""

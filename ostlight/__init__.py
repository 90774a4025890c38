"""ostlight chooses training data by what a sample does to the model."""

"""Fine-tuning: the warm-up of the proxy and the training of the target."""

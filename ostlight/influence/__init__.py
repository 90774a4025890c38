"""What one training step on a sample does to the loss on the anchors."""

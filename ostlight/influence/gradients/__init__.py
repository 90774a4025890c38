"""Per-sample gradients against fixed vectors, without ever holding a per-sample gradient."""

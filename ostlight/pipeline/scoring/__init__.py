"""Every sample of a pool through a selector, under Lightning's ``predict``."""

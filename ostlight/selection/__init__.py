"""What a selector is, how it is found, and how its scores become a subset."""

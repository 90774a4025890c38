"""What a run leaves behind: its folder, its fingerprints, its costs."""

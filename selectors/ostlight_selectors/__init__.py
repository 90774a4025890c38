"""The selectors that ship with ostlight, one file each."""

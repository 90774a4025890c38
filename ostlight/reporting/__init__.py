"""A run as one page, and one sample explained in a terminal. Reads the run folder and changes nothing in it."""

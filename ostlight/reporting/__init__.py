"""A run as one page, and one sample told in a terminal. Reads the run folder and changes nothing in it."""

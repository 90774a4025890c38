"""A subset as a data set for the Hugging Face Hub, with a card and what other trainers need."""

"""A piece of work, from its submission to its outcome."""

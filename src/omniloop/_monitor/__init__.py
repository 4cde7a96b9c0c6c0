"""The live view: what the loops of a process do now, answered over a socket of the user's own, and shown in a terminal or a browser."""

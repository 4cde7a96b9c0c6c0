"""The live view of what a process's loops are doing: served on a Unix socket of the user, shown in a terminal or a browser."""

"""What this process does to the runtimes in it: forks, exits, signals, and what its host makes of threads."""

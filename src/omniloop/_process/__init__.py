"""What this process does to the runtimes in it: forks, exits, signals, threads."""

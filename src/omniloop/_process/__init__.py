"""How the process treats its runtimes: forks, exits, signals and threads."""

"""One life of a runtime: its thread, loop and workers, from first use to end."""

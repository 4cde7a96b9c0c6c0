"""Hand-over of calls to an engine that keeps them beyond this process, and the file of the outbox."""

"""A piece of work, from its submission to its outcome: its handle, the inbox, the ledger that runs it, and its failures."""

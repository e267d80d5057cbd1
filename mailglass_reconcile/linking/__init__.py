"""Which delivery an orphan belongs to, and the link: the same for sweeps, writers and links by hand."""

"""What sweeps and people read across tables: the window of open orphans, lists of them, and reports."""

"""What sweeps and people read across tables: a sweep's selection, lists of orphans, reports of providers."""

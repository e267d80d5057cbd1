"""One run over the open orphans: which delivery each belongs to, and linking them in batches."""

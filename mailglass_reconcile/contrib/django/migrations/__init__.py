"""One migration for each revision of ours, under its name: each runs our own migration, which skips what is done."""

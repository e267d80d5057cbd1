"""One migration for each revision of ours, under its name: each runs our own migration, which looks what is left."""

"""Rules that need no database: types and states with their words, providers, keys, addresses, the matching rule."""

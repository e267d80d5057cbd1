"""What operators see and do: one reader per row for people, the checks, the prune and the targeted sweep."""

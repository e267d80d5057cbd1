"""The operator's functions: status, orphans, explanations, the daily prune."""

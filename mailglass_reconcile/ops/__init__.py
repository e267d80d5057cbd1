"""What an operator asks for: status, orphans, explanations, the daily prune."""

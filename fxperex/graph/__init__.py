"""The graphs themselves: what a node is, what made it, how it prints; nothing of privacy."""

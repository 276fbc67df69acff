"""A model that cannot be private -> one that can, and the list of what was changed."""

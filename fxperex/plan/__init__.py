"""The decision as a value: a plan, its choices, how it prints and how it is stored."""

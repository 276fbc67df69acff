"""What people look at: the plan as a table, the step graph as text."""

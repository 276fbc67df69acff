"""What people look at: the plan as a text or a page, and both graphs as one picture."""

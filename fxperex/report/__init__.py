"""What people look at: the plan as a table or a page, both graphs as a picture, a view after each
stage.
"""

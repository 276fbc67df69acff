"""model + loss + batch -> Capture: one functional ATen graph, and every reason why there is
none.
"""

"""The object people hold: a step that runs, is saved and is loaded."""

"""`geom tui`: a Textual app over the library. Imported only by the command that starts it."""

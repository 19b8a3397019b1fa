"""Widgets of the panes, one file each; they read the session and keep no state of the trace."""

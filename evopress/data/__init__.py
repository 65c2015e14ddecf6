"""Text: its sources, and the token windows of the four splits."""

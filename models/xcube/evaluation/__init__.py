"""Generated shapes compared with real ones."""

"""The domain in plain Python: no database, no web, no torch."""

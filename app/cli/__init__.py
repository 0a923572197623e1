"""The command line: the same store, the same checks as the pages."""

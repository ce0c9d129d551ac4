"""The subcommands of `xcube`: functions whose signatures and docstrings define their options and help."""

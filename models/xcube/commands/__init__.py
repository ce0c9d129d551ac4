"""What the subcommands of `xcube` do: functions whose signature and docstring make their options and help."""

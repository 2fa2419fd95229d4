"""The command line: options, and tables on the screen. Nothing imports it."""

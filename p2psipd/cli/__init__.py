"""The p2psip command, a file for each group of verbs."""

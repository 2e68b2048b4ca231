"""The shell of Parallax: the `plxsh` command line and the original tools.

Nothing here knows how a store is laid out; that is `core`. Commands turn words into calls
of `core` and what comes back into tables, JSON or YAML.
"""

"""The Parallax storage engine: copy-on-write virtual disks in one blockstore.

Nothing here prints, parses a command line or asks a question; `plxsh` does that.
Read the modules from the bottom of the data path upwards: `format`, `device`,
`extent`, `blockstore`, `radix`, `snaplog`, `registry`, `commit`, `vdi`, `session`.
"""

"""The tap: an NBD server that gives VDIs and snapshots to virtual machines.

`server` is where to start: it runs the loop. `handshake` speaks to a client until it has
chosen an export (`exports`), `transmission` carries out its requests after that, `jobs`
those that must not hold up the others, `commits` makes writes durable.
"""

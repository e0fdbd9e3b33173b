"""The stand-in for oned: its API, its model of a cloud, and what its mads do to the drivers.

No driver logic lives here, and nothing but the standard library is needed: `server` answers the
API from files, `cloud` writes these files, `mads` runs the drivers as one_datastore, one_tm and
one_vmm_exec do, `oned` strings their calls together, `probe` is what a host's monitoring runs.
"""

"""The cache of images on one machine, be it the replica or a host (docs/design.md, section 3).

An *entry* is an image file under its origin's path with a *sidecar* that says which version of the
image it is. ``record`` is the sidecar, ``entry`` the names and states of one entry, ``room`` what
all entries together may take, ``fill`` how a missing one comes, ``scrub`` how a damaged one is
found.
"""

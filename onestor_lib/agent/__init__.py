"""The host side: everything that touches files, standard library only.

The front-end sends this package along with each connection (``frontend.bundle``), so that both
sides are always of one version and a host needs nothing but python3 and qemu-img.
"""

"""onestor: storage drivers for OpenNebula.

Two sides, and imports that point one way (docs/design.md, section 2):

* ``onestor_lib.frontend`` runs in oned's process tree: it reads arguments, asks oned, decides.
* ``onestor_lib.agent`` runs where the files are, with nothing but the standard library.
"""

__version__ = "0.1.0"

"""The front-end side: what runs in oned's process tree.

Actions (one module for each OpenNebula action) use services (what several actions do), which use
the primitives in this directory; work on files is always an agent's (``onestor_lib.agent``).
"""

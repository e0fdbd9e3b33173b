"""Tests without processes and sockets: one file for each module, and the rules of the source."""

"""Tests of install.sh and of packaging/: real runs into an empty prefix."""

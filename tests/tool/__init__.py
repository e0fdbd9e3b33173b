"""Tests with real programs, local agents and file systems on a temporary directory."""

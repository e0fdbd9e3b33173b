"""Tests of the stand-in for oned."""

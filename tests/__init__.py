"""Tests of onestor."""

"""What people and timers run, as oned runs the actions."""

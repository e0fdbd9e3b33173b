"""What several actions do: find the agent of a host, put an image in place, move bytes."""

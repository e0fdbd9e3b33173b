"""One module for each action OpenNebula calls; ``run`` tells its whole flow."""

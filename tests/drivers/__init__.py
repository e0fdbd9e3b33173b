"""The drivers on a cluster, called as oned calls them."""

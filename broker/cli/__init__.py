"""What the commands do that speak to a broker that runs, or to its authorization servers."""

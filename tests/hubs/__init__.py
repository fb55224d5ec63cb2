"""Stand-ins for the hubs: a real HTTPS server on this machine that answers under their names."""

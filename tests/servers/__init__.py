"""Real servers, of the system's packages, that tests start for themselves on loopback."""

"""Speed on this machine: of one training against its limit and its peers, and of a whole study."""

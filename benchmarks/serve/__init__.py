"""How fast the endpoint is, beside the ways of serving it replaces; and whether it lasts."""

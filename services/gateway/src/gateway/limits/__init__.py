"""How much of a gateway one owner may take."""

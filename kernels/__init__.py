"""Device code: what turns one attention row into numbers, and the plain torch reference that everything is tested on."""

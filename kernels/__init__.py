"""What turns one attention row into numbers: the plain torch reference that every faster path is tested on."""

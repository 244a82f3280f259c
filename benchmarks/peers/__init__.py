"""What a user would write instead, on the same work and as well as it can be done in a page."""

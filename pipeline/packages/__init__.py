"""Code on its way to the workers: the user's own packages, and a wheel of headrace itself."""

"""What is served with the library: page, search, heads, change, late interaction."""

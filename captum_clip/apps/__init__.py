"""What is served with the library: page, search, heads, change, export, late interaction."""

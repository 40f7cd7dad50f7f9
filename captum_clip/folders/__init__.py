"""Work over many images: folders here or behind a URL, read ahead, on Ray; the bootstrap."""

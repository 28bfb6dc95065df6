"""Order: what happens after what."""

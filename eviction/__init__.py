"""KV eviction by received attention."""

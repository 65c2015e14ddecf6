"""Published searches to compare with."""

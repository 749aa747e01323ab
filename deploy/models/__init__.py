"""Model files: from a hub, and those that other programs have put on this disk."""

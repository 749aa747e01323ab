"""Who is who in a stack: keys on disk, and the door that lets their holders in."""
